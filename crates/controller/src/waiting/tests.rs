use super::*;

fn at(text: &str) -> Timestamp {
    format!("2026-03-02T{text}Z").parse().unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn payments() -> Labels {
    labels(&[("vpc", "payments")])
}

/// An executor with a free slot.
fn free(id: &str, pairs: &[(&str, &str)]) -> ExecutorFacts {
    ExecutorFacts {
        id: id.parse().unwrap(),
        labels: labels(pairs),
        capacity: 4,
        taken: 3,
        no_room: false,
        full_since: None,
        present: true,
        absent_since: None,
        draining: None,
    }
}

fn full(id: &str, since: &str) -> ExecutorFacts {
    ExecutorFacts { taken: 4, full_since: Some(at(since)), ..free(id, &[("vpc", "payments")]) }
}

fn draining(id: &str) -> ExecutorFacts {
    ExecutorFacts { draining: Some(("sam".into(), at("14:02:59"))), ..free(id, &[("vpc", "payments")]) }
}

fn away(id: &str) -> ExecutorFacts {
    ExecutorFacts { present: false, absent_since: Some(at("09:00:00")), ..free(id, &[("vpc", "payments")]) }
}

fn of(executors: Vec<ExecutorFacts>) -> Facts {
    Facts { executors, ..Facts::default() }
}

/// The causes, as people read them, each with its code.
fn told(selector: &Labels, facts: &Facts) -> Vec<String> {
    let causes = explain(selector, facts, at("15:00:00")).causes;
    let line = |cause: Cause| match cause.executor.filter(|_| cause.code != cause::NO_MATCHING_EXECUTOR) {
        Some(executor) => format!("{}  {executor}  {}", cause.code, cause.message),
        None => format!("{}  {}", cause.code, cause.message),
    };
    causes.into_iter().map(line).collect()
}

#[test]
fn each_executor_has_its_own_reason() {
    let executors = vec![
        full("pay-1", "10:32:10"),
        draining("pay-2"),
        away("pay-3"),
        ExecutorFacts { no_room: true, ..free("pay-4", &[("vpc", "payments")]) },
        free("plain", &[]),
        free("web-1", &[("vpc", "web")]),
    ];
    assert_eq!(
        told(&payments(), &of(executors)),
        [
            "EXECUTOR_FULL  pay-1  full: 4/4 slots since 10:32",
            "EXECUTOR_FULL  pay-4  says that it has no room, 3/4 slots are taken",
            "EXECUTOR_DRAINING  pay-2  draining since 14:02 (sam)",
            "EXECUTOR_ABSENT  pay-3  not there since 09:00",
            "LABEL  plain  has no label vpc, needs vpc=payments",
            "LABEL  web-1  vpc=web, needs vpc=payments",
        ]
    );
}

#[test]
fn the_nearest_executor_is_named_where_none_matches() {
    let web = free("web-1", &[("vpc", "web")]);
    let told_first = |selector: &Labels, executors: &[ExecutorFacts]| told(selector, &of(executors.to_vec())).remove(0);
    let only = |message: &str| format!("NO_MATCHING_EXECUTOR  no executor with {message}");
    assert_eq!(told_first(&payments(), std::slice::from_ref(&web)), only("vpc=payments (nearest: web-1 has vpc=web)"));
    assert_eq!(told_first(&payments(), &[free("exec-2", &[])]), only("vpc=payments (nearest: exec-2 lacks it)"));
    let choosy = labels(&[("gpu", "yes"), ("vpc", "payments"), ("zone", "a")]);
    let executors = [free("far", &[("gpu", "yes")]), free("near", &[("gpu", "yes"), ("vpc", "payments")]), web];
    assert_eq!(told_first(&choosy, &executors), only("gpu=yes,vpc=payments,zone=a (nearest: near lacks zone=a)"));
    assert_eq!(
        told_first(&choosy, &executors[..1]),
        only("gpu=yes,vpc=payments,zone=a (nearest: far lacks vpc=payments, zone=a)")
    );
    let wait = explain(&choosy, &of(executors.to_vec()), at("15:00:00"));
    assert_eq!(wait.causes[0].executor.as_ref().unwrap().as_str(), "near");
    assert_eq!(wait.causes.len(), 4, "and what each lacks: {wait:?}");
}

#[test]
fn one_that_is_away_is_nearer_than_any_other() {
    let executors = vec![away("pay-3"), free("web-1", &[("vpc", "web")])];
    assert_eq!(
        told(&payments(), &of(executors)),
        [
            "NO_MATCHING_EXECUTOR  no executor with vpc=payments is there",
            "EXECUTOR_ABSENT  pay-3  not there since 09:00",
            "LABEL  web-1  vpc=web, needs vpc=payments",
        ]
    );
    assert_eq!(told(&payments(), &of(vec![])), ["NO_EXECUTOR  no executor is there"]);
    let alone = told(&payments(), &of(vec![away("pay-3"), ExecutorFacts { present: false, ..free("web-1", &[("vpc", "web")]) }]));
    assert_eq!(alone, ["NO_EXECUTOR  no executor is there", "EXECUTOR_ABSENT  pay-3  not there since 09:00"]);
}

#[test]
fn where_one_has_room_it_is_a_matter_of_whose_turn_it_is() {
    let mut facts = of(vec![full("pay-1", "10:32:00"), free("pay-2", &[("vpc", "payments")]), free("web-1", &[("vpc", "web")])]);
    assert_eq!(explain(&payments(), &facts, at("15:00:00")), Wait::default());
    for (ahead, message) in [
        (1, "1 execution is ahead of it"),
        (2, "2 executions are ahead of it"),
        (1000, "1000 executions or more are ahead of it"),
    ] {
        facts.ahead = ahead;
        assert_eq!(told(&payments(), &facts), [format!("AHEAD  {message}")]);
    }
    facts.ahead = 70_000;
    assert_eq!(explain(&payments(), &facts, at("15:00:00")).ahead, 1000);
}

#[test]
fn what_holds_up_the_job_itself_comes_first() {
    let id = ExecutionId::from_bits;
    let facts = Facts {
        ahead: 3,
        slots: Some((2, vec![id(1), id(2)])),
        paused: Some(Pause {
            record: PausedRecord {
                by: "sam".into(),
                at: "2026-03-01T23:59:00Z".parse().unwrap(),
                reason: "the database moves".into(),
            },
            all: false,
        }),
        not_before: Some(at("15:00:08")),
        ..of(vec![full("pay-1", "10:32:00")])
    };
    let (one, two) = (id(1), id(2));
    assert_eq!(
        told(&payments(), &facts),
        [
            "JOB_PAUSED  the job is paused since 2026-03-01 23:59 (sam): the database moves".to_owned(),
            "BACK_OFF  waits until 15:00:08 before its next attempt".to_owned(),
            format!("CONCURRENCY_LIMIT  concurrency limit of 2, held by {one}, {two}"),
            "EXECUTOR_FULL  pay-1  full: 4/4 slots since 10:32".to_owned(),
            "AHEAD  3 executions are ahead of it".to_owned(),
        ]
    );
    let wait = explain(&payments(), &facts, at("15:00:00"));
    assert_eq!(wait.causes[2].executions, [one, two]);
    assert_eq!(wait.causes[1].since, facts.not_before);
    let over = Facts { not_before: Some(at("14:59:59")), ..Facts::default() };
    assert_eq!(told(&payments(), &over), ["NO_EXECUTOR  no executor is there"], "a back-off that is over holds nothing up");

    let many = Facts { slots: Some((300, (0..300).map(id).collect())), ..Facts::default() };
    let cause = explain(&payments(), &many, at("15:00:00")).causes.remove(0);
    assert!(cause.message.ends_with(" and 290 more") && cause.message.len() < 400, "{}", cause.message);
    assert_eq!(cause.executions.len(), NAMED);
}

#[test]
fn many_executors_are_told_together() {
    let mut executors: Vec<_> = (0..37).map(|n| full(&format!("pay-{n}"), &format!("10:{:02}:00", n % 33))).collect();
    executors.extend((0..463).map(|n| free(&format!("web-{n}"), &[("vpc", "web")])));
    let (all, lack) = ("EXECUTOR_FULL  all 37 with vpc=payments full since 10:32", "LABEL  463 executors lack vpc=payments");
    assert_eq!(told(&payments(), &of(executors.clone())), [all, lack]);
    assert_eq!(explain(&payments(), &of(executors.clone()), at("15:00:00")).causes[0].since, Some(at("10:32:00")));

    executors[0] = draining("pay-0");
    executors[1] = away("pay-1");
    executors[2].full_since = None;
    assert_eq!(
        told(&payments(), &of(executors.clone())),
        [
            "EXECUTOR_FULL  35 of 37 with vpc=payments full",
            "EXECUTOR_DRAINING  1 of 37 with vpc=payments draining since 14:02",
            "EXECUTOR_ABSENT  1 of 37 with vpc=payments not there since 09:00",
            lack,
        ]
    );
    // The few that match are told one by one beside the many that do not.
    let few: Vec<_> = executors.iter().skip(3).take(2).chain(&executors[37..]).cloned().collect();
    let told_few = told(&payments(), &of(few));
    assert_eq!(told_few.len(), 3, "{told_few:?}");
    assert!(told_few[0].contains("pay-3  full: 4/4") && told_few[2] == lack, "{told_few:?}");

    let everyone = Labels::new();
    let all: Vec<_> = (0..11).map(|n| full(&format!("e{n}"), "10:32:00")).collect();
    assert_eq!(told(&everyone, &of(all)), ["EXECUTOR_FULL  all 11 full since 10:32"]);
    let choosy = labels(&[("gpu", "yes"), ("vpc", "web")]);
    let mixed: Vec<_> =
        (0..12).map(|n| free(&format!("e{n}"), if n == 0 { &[("gpu", "yes")] } else { &[("vpc", "web")] })).collect();
    assert_eq!(told(&choosy, &of(mixed))[1..], ["LABEL  11 executors lack gpu=yes", "LABEL  1 executor lacks vpc=web"]);
}

/// The metric counts by what `status` names first.
#[test]
fn what_is_counted_is_what_is_told_first() {
    let web = || free("web-1", &[("vpc", "web")]);
    for (executors, expected) in [
        (vec![], cause::NO_EXECUTOR),
        (vec![away("a")], cause::NO_EXECUTOR),
        (vec![web()], cause::NO_MATCHING_EXECUTOR),
        (vec![web(), away("a")], cause::NO_MATCHING_EXECUTOR),
        (vec![web(), draining("a")], cause::EXECUTOR_DRAINING),
        (vec![full("a", "10:00:00"), draining("b"), web()], cause::EXECUTOR_FULL),
    ] {
        assert_eq!(standing(&payments(), &executors), expected, "{executors:?}");
        let facts = Facts { ahead: 1, ..of(executors) };
        assert_eq!(explain(&payments(), &facts, at("15:00:00")).causes[0].code, expected, "{facts:?}");
    }
    assert_eq!(standing(&payments(), &[full("a", "10:00:00"), free("b", &[("vpc", "payments")])]), cause::AHEAD);
    assert_eq!(standing(&payments(), &[ExecutorFacts { taken: 0, ..draining("a") }]), cause::EXECUTOR_DRAINING);
}
