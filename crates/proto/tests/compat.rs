//! The wire format, held to that of the version before: an executor, a controller and a client of neighbouring versions understand each other.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

/// The descriptors of the version before. When a version is released, OCTAVIUS_UPDATE_BEFORE=1 cargo test -p octavius-proto compat writes its own.
const BEFORE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/before.binpb");

/// A field that is not sent any more, and whose number nothing else takes: who knows it finds it empty.
const RESERVED: &str = "reserved";

/// What a peer of another version relies on: each field's place and type, each enum's numbers, each RPC's messages.
fn promises(set: &FileDescriptorSet) -> BTreeMap<String, String> {
    let mut promises = BTreeMap::new();
    for file in set.file.iter().filter(|file| file.package() == "octavius.v1") {
        file.message_type.iter().for_each(|message| of_message(message, message.name(), &mut promises));
        file.enum_type.iter().for_each(|known| of_enum(known, known.name(), &mut promises));
        for service in &file.service {
            for rpc in &service.method {
                let (asks, answers) = (rpc.client_streaming(), rpc.server_streaming());
                let means = format!("{} (stream: {asks}) -> {} (stream: {answers})", rpc.input_type(), rpc.output_type());
                promises.insert(format!("{}/{}", service.name(), rpc.name()), means);
            }
        }
    }
    promises
}

fn of_message(message: &DescriptorProto, name: &str, promises: &mut BTreeMap<String, String>) {
    for field in &message.field {
        let means = format!("{} {:?} {:?} {}", field.name(), field.r#type(), field.label(), field.type_name());
        promises.insert(format!("{name} field {}", field.number()), means);
    }
    for range in &message.reserved_range {
        for number in range.start()..range.end() {
            promises.insert(format!("{name} field {number}"), RESERVED.to_owned());
        }
    }
    message.nested_type.iter().for_each(|nested| of_message(nested, &format!("{name}.{}", nested.name()), promises));
    message.enum_type.iter().for_each(|nested| of_enum(nested, &format!("{name}.{}", nested.name()), promises));
}

fn of_enum(known: &EnumDescriptorProto, name: &str, promises: &mut BTreeMap<String, String>) {
    for value in &known.value {
        promises.insert(format!("{name} value {}", value.number()), value.name().to_owned());
    }
}

/// Writes the descriptors of this version there.
fn take_the_place_of_the_version_before() {
    let mut set = FileDescriptorSet::decode(octavius_proto::DESCRIPTORS).expect("our own descriptors");
    set.file.retain(|file| file.package() == "octavius.v1");
    set.file.iter_mut().for_each(|file| file.source_code_info = None);
    std::fs::write(BEFORE, set.encode_to_vec()).expect("the fixture is written");
}

#[test]
fn whatever_the_version_before_may_say_is_understood_as_it_was_meant() {
    if std::env::var_os("OCTAVIUS_UPDATE_BEFORE").is_some() {
        take_the_place_of_the_version_before();
    }
    let before = FileDescriptorSet::decode(&std::fs::read(BEFORE).unwrap()[..]).unwrap();
    let before = promises(&before);
    assert!(before.len() > 300, "{} promises", before.len());
    let now = promises(&FileDescriptorSet::decode(octavius_proto::DESCRIPTORS).unwrap());
    let kept = |what: &str, means: &str| now.get(what).is_some_and(|now| now == means || now == RESERVED);
    let broken: Vec<_> = before.iter().filter(|(what, means)| !kept(what, means)).collect();
    assert!(broken.is_empty(), "the version before relies on these: {broken:#?}");
}
