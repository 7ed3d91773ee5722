//! What the etcd does by itself: bare puts of 256 bytes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use etcd_client::Client;
use octavius_tests::Etcd;
use tokio::task::JoinSet;

use crate::{CALLERS, CONNECTIONS};

const VALUE: [u8; 256] = [b'v'; 256];

/// Puts.
pub(crate) struct Puts {
    clients: Vec<Client>,
}

impl Puts {
    pub(crate) async fn connect(etcd: &Etcd) -> Result<Self> {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(Client::connect(etcd.endpoints(), None).await?);
        }
        Ok(Self { clients })
    }

    /// Puts per second, with 64 callers, each on keys of its own.
    pub(crate) async fn rate(&self, puts: usize) -> Result<f64> {
        let begun = Instant::now();
        let mut lanes = JoinSet::new();
        for lane in 0..CALLERS {
            let mut client = self.clients[lane % self.clients.len()].clone();
            lanes.spawn(async move {
                for number in 0..puts / CALLERS {
                    client.put(format!("/bare/{lane}/{number}"), VALUE, None).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane??;
        }
        Ok((puts / CALLERS * CALLERS) as f64 / begun.elapsed().as_secs_f64())
    }

    /// How long one put takes with nothing beside it: the median.
    pub(crate) async fn alone(&self, puts: usize) -> Result<Duration> {
        let mut client = self.clients.first().context("no client")?.clone();
        let mut times = Vec::with_capacity(puts);
        for number in 0..puts {
            let begun = Instant::now();
            client.put(format!("/bare/alone/{number}"), VALUE, None).await?;
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        Ok(times[times.len() / 2])
    }
}
