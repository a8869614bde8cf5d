//! etcd, as the contestants that use it see it.

mod messages;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::Context;
use futures_lite::{StreamExt, stream};
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

pub(super) use messages::{Compare, KeyValue, PutRequest};
use messages::{
    DeleteRangeRequest, Done, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest,
    LeaseKeepAliveResponse, LeaseRevokeRequest, LockRequest, LockResponse, RangeRequest,
    RangeResponse, Request as Operation, RequestOp, Response, TxnRequest, TxnResponse,
    UnlockRequest,
};

use crate::worker::Worker;

/// A connection; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Etcd(Grpc<Channel>);

/// What a conditional write came to.
pub(super) enum Outcome {
    /// Written, at this revision.
    Written(i64),
    /// The condition did not hold; this is what is there.
    Found(Vec<KeyValue>),
}

impl Etcd {
    pub(super) async fn connect(port: u16) -> anyhow::Result<Self> {
        let endpoint = Endpoint::try_from(format!("http://127.0.0.1:{port}"))?.tcp_nodelay(true);
        let channel = endpoint.connect().await.context("cannot reach etcd")?;
        Ok(Self(Grpc::new(channel)))
    }

    async fn ask<Q, A>(&self, path: &'static str, question: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.0.clone();
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let (path, codec) = (PathAndQuery::from_static(path), ProstCodec::default());
        Ok(grpc.unary(Request::new(question), path, codec).await?.into_inner())
    }

    /// All keys with this prefix.
    pub(super) async fn with_prefix(&self, prefix: &str) -> anyhow::Result<Vec<KeyValue>> {
        let range = RangeRequest { key: prefix.into(), range_end: end_of(prefix) };
        let answer: RangeResponse = self.ask("/etcdserverpb.KV/Range", range).await?;
        Ok(answer.kvs)
    }

    /// One key, if it is there.
    pub(super) async fn get(&self, key: &str) -> anyhow::Result<Option<KeyValue>> {
        let range = RangeRequest { key: key.into(), range_end: Vec::new() };
        let answer: RangeResponse = self.ask("/etcdserverpb.KV/Range", range).await?;
        Ok(answer.kvs.into_iter().next())
    }

    /// Deletes all keys with this prefix.
    pub(super) async fn delete_prefix(&self, prefix: &str) -> anyhow::Result<()> {
        let range = DeleteRangeRequest { key: prefix.into(), range_end: end_of(prefix) };
        let _: Done = self.ask("/etcdserverpb.KV/DeleteRange", range).await?;
        Ok(())
    }

    /// Writes, if all conditions hold; else reads what is there.
    pub(super) async fn write_if(
        &self,
        compare: Vec<Compare>,
        writes: Vec<PutRequest>,
    ) -> anyhow::Result<Outcome> {
        let read = |put: &PutRequest| RangeRequest { key: put.key.clone(), range_end: Vec::new() };
        let operation = |request| RequestOp { request: Some(request) };
        let failure = writes.iter().map(|put| operation(Operation::Range(read(put)))).collect();
        let success = writes.into_iter().map(|put| operation(Operation::Put(put))).collect();
        let txn = TxnRequest { compare, success, failure };
        let answer: TxnResponse = self.ask("/etcdserverpb.KV/Txn", txn).await?;
        if answer.succeeded {
            return Ok(Outcome::Written(answer.header.unwrap_or_default().revision));
        }
        let found = answer.responses.into_iter().filter_map(|one| match one.response? {
            Response::Range(range) => Some(range.kvs),
        });
        Ok(Outcome::Found(found.flatten().collect()))
    }

    /// Waits for the lock of this name. Gives its key, which grows with no one else's, and the
    /// revision at which it was created.
    pub(super) async fn lock(&self, name: String, lease: i64) -> Result<(Vec<u8>, i64), Status> {
        let request = LockRequest { name: name.into(), lease };
        let answer: LockResponse = self.ask("/v3lockpb.Lock/Lock", request).await?;
        Ok((answer.key, answer.header.unwrap_or_default().revision))
    }

    pub(super) async fn unlock(&self, key: Vec<u8>) -> Result<(), Status> {
        let _: Done = self.ask("/v3lockpb.Lock/Unlock", UnlockRequest { key }).await?;
        Ok(())
    }

    async fn grant(&self, lease: Duration) -> anyhow::Result<i64> {
        let ttl = i64::try_from(lease.as_secs().max(1))?;
        let request = LeaseGrantRequest { ttl };
        let granted: LeaseGrantResponse =
            self.ask("/etcdserverpb.Lease/LeaseGrant", request).await?;
        Ok(granted.id)
    }

    async fn keep_alive(&self, id: i64) -> Result<bool, Status> {
        let mut grpc = self.0.clone();
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
        let questions = Request::new(stream::once(LeaseKeepAliveRequest { id }));
        let codec = ProstCodec::default();
        let answers = grpc.streaming(questions, path, codec).await?;
        let mut answers: tonic::Streaming<LeaseKeepAliveResponse> = answers.into_inner();
        Ok(answers.next().await.transpose()?.is_some_and(|answer| answer.ttl > 0))
    }

    async fn revoke(&self, id: i64) -> Result<(), Status> {
        let request = LeaseRevokeRequest { id };
        let _: Done = self.ask("/etcdserverpb.Lease/LeaseRevoke", request).await?;
        Ok(())
    }
}

fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// A lease that is kept alive, as long as its process runs (Gray & Cheriton, "Leases", 1989).
/// A new one takes its place when it was lost.
pub(super) struct Session {
    pub(super) etcd: Etcd,
    lease: Arc<AtomicI64>,
    renewing: tokio::task::JoinHandle<()>,
}

impl Session {
    pub(super) async fn open(worker: &Arc<Worker>, etcd: Etcd) -> anyhow::Result<Self> {
        worker.counters.operations.add(1);
        let duration = worker.plan.lease();
        let lease = Arc::new(AtomicI64::new(etcd.grant(duration).await?));
        let renewing = tokio::spawn({
            let (worker, etcd, lease) = (Arc::clone(worker), etcd.clone(), Arc::clone(&lease));
            async move {
                loop {
                    tokio::time::sleep(duration / 3).await;
                    worker.counters.operations.add(1);
                    let id = lease.load(Ordering::Acquire);
                    // An error is a busy machine: the next renewal may still be in time.
                    let Ok(false) = etcd.keep_alive(id).await else { continue };
                    worker.counters.operations.add(1);
                    if let Ok(another) = etcd.grant(duration).await {
                        lease.store(another, Ordering::Release);
                    }
                }
            }
        });
        Ok(Self { etcd, lease, renewing })
    }

    /// The lease as of now.
    pub(super) fn lease(&self) -> i64 {
        self.lease.load(Ordering::Acquire)
    }

    /// Ends the lease, and with it all that depends on it.
    pub(super) async fn close(&self, worker: &Worker) -> anyhow::Result<()> {
        self.renewing.abort();
        worker.counters.operations.add(1);
        match self.etcd.revoke(self.lease()).await {
            Ok(()) => Ok(()),
            Err(gone) if gone.code() == tonic::Code::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}
