//! Nonsense on the wire: an answer that says what is wrong, and a server that lives on.

use futures::future::join_all;
use octavius_proto::v1::{self, Role};
use octavius_proto::{Fault, MAX_MESSAGE_BYTES, reason};
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::harness::{Dice, House, soon, told};

/// Bytes as they are, in the place of messages.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; bytes::Buf::remaining(buffer)];
        bytes::Buf::copy_to_slice(buffer, &mut item);
        Ok(Some(item))
    }
}

async fn channel(house: &House) -> Channel {
    Endpoint::from_shared(format!("http://{}", house.address)).unwrap().connect().await.unwrap()
}

async fn send(channel: &Channel, path: &'static str, token: &str, messages: Vec<Vec<u8>>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let mut request = Request::new(futures::stream::iter(messages));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let response = client.streaming(request, PathAndQuery::from_static(path), Raw).await?;
    let mut stream = response.into_inner();
    while stream.message().await?.is_some() {}
    Ok(())
}

#[tokio::test]
async fn a_message_over_the_limit_or_not_readable_at_all_is_the_callers_fault() {
    let house = House::open().await;
    let channel = channel(&house).await;
    let admin = house.token.clone();
    let executor = house.register("e").await;
    let large = vec![0x12; MAX_MESSAGE_BYTES + 1];
    // An apply's header names all jobs, and may be larger.
    let larger = vec![0x12; 4 * MAX_MESSAGE_BYTES + 1];
    let garbage = vec![0xff; 100];
    for (path, token) in [
        ("/octavius.v1.ExecutionService/Execute", &admin),
        ("/octavius.v1.ExecutionService/WatchExecution", &admin),
        ("/octavius.v1.CatalogService/Apply", &admin),
        ("/octavius.v1.AdminService/CreateToken", &admin),
        ("/octavius.v1.LogService/AppendLog", &executor),
        ("/octavius.v1.ExecutorService/Session", &executor),
    ] {
        let large = if path.ends_with("/Apply") || path.ends_with("/AppendLog") { &larger } else { &large };
        let fault = told(&send(&channel, path, token, vec![large.clone()]).await.unwrap_err());
        assert_eq!((fault.code, fault.reason.as_str()), (Code::ResourceExhausted, reason::LIMIT), "{path}: {fault:?}");
        let fault = told(&send(&channel, path, token, vec![garbage.clone()]).await.unwrap_err());
        assert_eq!((fault.code, fault.reason.as_str()), (Code::InvalidArgument, reason::INVALID_REQUEST), "{path}: {fault:?}");
    }
    let unknown = send(&channel, "/octavius.v1.NoService/Nothing", &admin, vec![vec![]]).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
}

#[tokio::test]
async fn missing_fields_unknown_numbers_and_ids_that_are_none_are_named() {
    let house = House::open().await;
    let admin = house.admin().await;
    let token = house.register("e").await;
    let executor = house.connect(Some(&token)).await;
    let id = octavius_core::ExecutionId::generate().to_string();
    let named = |status: Status, field: &str| {
        let fault = told(&status);
        assert_eq!((fault.code, fault.reason.as_str()), (Code::InvalidArgument, reason::INVALID_REQUEST), "{fault:?}");
        assert_eq!(fault.violations.first().map(|violation| violation.field.as_str()), Some(field), "{fault:?}");
    };
    let report = |request: v1::ReportExecutionRequest| {
        let executor = executor.clone();
        async move { executor.executors().report_execution(request).await.unwrap_err() }
    };
    let known = v1::ReportExecutionRequest { id: id.clone(), attempt: 1, nonce: 1, step: None };
    named(report(v1::ReportExecutionRequest { id: String::new(), ..known.clone() }).await, "id");
    named(report(v1::ReportExecutionRequest { attempt: 0, ..known.clone() }).await, "attempt");
    named(report(known.clone()).await, "step");
    let finished = |ending| {
        let finished = v1::Finished { ending, ..Default::default() };
        v1::ReportExecutionRequest { step: Some(v1::report_execution_request::Step::Finished(finished)), ..known.clone() }
    };
    named(report(finished(None)).await, "ending");
    for outcome in [0, 1, 4, 99, -1] {
        named(report(finished(Some(v1::Ending { outcome, ..Default::default() }))).await, "outcome");
    }
    let nonsense = ["", "@", "@earliest", "ab", "../..", "0", "ILOU", "é", &"z".repeat(26), &"0".repeat(4000), "0000\0"];
    for id in nonsense {
        let status = admin.executions().get_execution(v1::GetExecutionRequest { id: id.to_owned() }).await.unwrap_err();
        assert_eq!(told(&status).reason, reason::EXECUTION_NOT_FOUND, "{id}");
        let status =
            admin.executions().execute(v1::ExecuteRequest { id: id.to_owned(), ..Default::default() }).await.unwrap_err();
        named(status, "id");
    }
    let now = v1::ExecuteRequest { id, ..Default::default() };
    let timeout = |seconds, nanos| v1::ExecuteRequest { timeout: Some(prost_types::Duration { seconds, nanos }), ..now.clone() };
    for request in [timeout(0, 0), timeout(-1, 0), timeout(0, -5), timeout(i64::MAX, 0), timeout(400 * 86400, 0)] {
        named(admin.executions().execute(request).await.unwrap_err(), "timeout");
    }
    let long = v1::ExecuteRequest { idempotency_key: "k".repeat(257), ..now.clone() };
    named(admin.executions().execute(long).await.unwrap_err(), "idempotency_key");
    let job = v1::ExecuteRequest { job: "j".repeat(3 << 20), ..now };
    let fault = told(&soon("an answer", admin.executions().execute(job)).await.unwrap_err());
    assert_eq!(fault.reason, reason::JOB_NOT_FOUND, "{fault:?}");
    for states in [vec![0], vec![77]] {
        let request = v1::ListExecutionsRequest { states, ..Default::default() };
        named(admin.executions().list_executions(request).await.unwrap_err(), "states");
    }
    for catalog in ["", "a b", "../x"] {
        let status = admin.catalog().get_head(v1::GetHeadRequest { catalog: catalog.into() }).await.unwrap_err();
        named(status, "catalog");
    }
    let buckets = v1::GetBucketsRequest { catalog: "c".into(), revision: 0, buckets: vec![256] };
    named(admin.catalog().get_buckets(buckets).await.unwrap_err(), "buckets");
    let short = v1::GetDefinitionsRequest { digests: vec![vec![0; 31].into()] };
    named(admin.catalog().get_definitions(short).await.unwrap_err(), "digests");
    let missing = v1::GetBucketsRequest { catalog: "c".into(), revision: u64::MAX, buckets: vec![] };
    assert_eq!(told(&admin.catalog().get_buckets(missing).await.unwrap_err()).reason, reason::NOT_FOUND);
    let revisions = v1::ListRevisionsRequest { catalog: "c".into(), limit: u32::MAX, before: u64::MAX, job: String::new() };
    assert_eq!(admin.catalog().list_revisions(revisions).await.unwrap().into_inner().revisions, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_of_garbage_at_once_hurt_nobody() {
    let house = House::open().await;
    let mut dice = Dice::thrown();
    let user = house.token(Role::User, "ann", &[]).await.token;
    let executor = house.register("e").await;
    let paths = [
        "/octavius.v1.ExecutionService/Execute",
        "/octavius.v1.ExecutionService/WatchExecution",
        "/octavius.v1.CatalogService/Apply",
        "/octavius.v1.CatalogService/GetBuckets",
        "/octavius.v1.LogService/AppendLog",
        "/octavius.v1.LogService/ReadLog",
        "/octavius.v1.ExecutorService/Session",
        "/octavius.v1.ExecutorService/ReportExecution",
        "/octavius.v1.AdminService/WhoAmI",
        "/octavius.v1.No/Nothing",
    ];
    let channels = [channel(&house).await, channel(&house).await];
    let tokens = [house.token.clone(), user, executor, "octu_nonsense".to_owned()];
    let mut calls = Vec::new();
    for n in 0..200 {
        let messages = (0..dice.below(5))
            .map(|_| {
                let size = [0, 3, 50, 5000][dice.below(4)];
                dice.bytes(size)
            })
            .collect();
        calls.push(send(&channels[n % 2], paths[dice.below(paths.len())], &tokens[dice.below(4)], messages));
    }
    for answer in soon("answers to garbage", join_all(calls)).await {
        if let Err(status) = answer {
            let fault = Fault::from_status(&status);
            assert!(!matches!(fault.code, Code::Internal | Code::Unknown | Code::Unavailable | Code::DataLoss), "{fault:?}");
        }
    }
    house.admin().await.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap();
}
