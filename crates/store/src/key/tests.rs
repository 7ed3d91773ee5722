use super::*;

#[test]
fn newer_executions_and_revisions_sort_first() {
    let (old, new) = (ExecutionId::from_bits(5), ExecutionId::from_bits(6));
    assert!(execution(new) < execution(old));
    assert_eq!(execution_of(&execution(new)), Some(new));
    assert_eq!(execution_of(&queued("any", 5, new)), Some(new));
    assert_eq!(execution_of(&awaits_approval(new)), Some(new));
    assert!(awaits_approval(new) < awaits_approval(old));
    let catalog = CatalogName::new("c").unwrap();
    assert!(catalog_revision(&catalog, 10) < catalog_revision(&catalog, 9));
}

#[test]
fn a_message_is_read_back_from_its_key() {
    let id = ExecutionId::from_bits(5);
    for event in WebhookEvent::ALL {
        assert_eq!(delivery_of(&delivery(id, event, "chat-1")), Some((id, event, "chat-1", false)));
        assert_eq!(delivery_of(&delivery_given_up(id, event, "chat-1")), Some((id, event, "chat-1", true)));
    }
    assert_eq!(delivery_of(&Key::new(format!("webhook/waiting/{id}/else/chat"))), None);
}

#[test]
fn what_is_removable_is_read_back_from_its_key() {
    let id = ExecutionId::from_bits(5);
    assert_eq!(removable_of(&removable_execution(7, id)), Some((7, Removable::Execution(id))));
    let used = once("ann/é", "k");
    assert_eq!(removable_of(&removable_once(7, &used)), Some((7, Removable::Once(used))));
    assert_eq!(removable_of(&Key::new("gc/0000000007/else/x")), None);
    assert_eq!(audited_of(&audited(7, id)), Some((7, id)));
    assert!(audited(6, id) < audit_from(7) && audit_from(7) < audited(7, ExecutionId::from_bits(0)));
    let digest = Digest::of(b"x");
    assert_eq!((blob_of(&blob(&digest)), blob_of(&blob_chunk(&digest, 3))), (Some(digest), Some(digest)));
}

#[test]
fn higher_priorities_sort_first_and_no_name_leaves_its_segment() {
    let id = ExecutionId::from_bits(1);
    assert!(queued("any", 9, id) < queued("any", 0, id));
    assert_eq!(by_user_all("a/../b é").as_str(), "by-user/a%2F..%2Fb%20%C3%A9/");
}
