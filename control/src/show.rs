//! The commands that only look.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use penstock_api::client::{Client, ClientError};
use penstock_api::model::{Name, Tables};
use penstock_api::query::{FlowQuery, Question};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::Output;
use crate::{rates, rows};

/// Moves the cursor home and wipes the screen (ECMA-48).
const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J";

/// Looks at the counters again and again, and prints what `rates` makes of two looks and the seconds in between.
async fn watch<T, R: Serialize>(
    every: Duration,
    out: &mut Output,
    mut look: impl AsyncFnMut() -> Result<T, ClientError>,
    rates: impl Fn(&T, &T, f64) -> R,
    text: impl Fn(&R) -> String,
) -> Result<(), Failure> {
    let clear = if std::io::stdout().is_terminal() && !out.is_json() { CLEAR_SCREEN } else { "" };
    let mut before = (Instant::now(), look().await?);
    loop {
        tokio::time::sleep(every).await;
        let now = (Instant::now(), look().await?);
        let seconds = now.0.duration_since(before.0).as_secs_f64();
        out.line(&rates(&before.1, &now.1, seconds), |rates| format!("{clear}{}", text(rates)))?;
        before = now;
    }
}

pub(crate) async fn status(
    client: &mut Client,
    every: Option<Duration>,
    out: &mut Output,
) -> Result<(), Failure> {
    match every {
        None => Ok(out.show(&client.status().await?, rows::status)?),
        Some(every) => {
            watch(every, out, async || client.status().await, rates::node, rates::node_table).await
        }
    }
}

pub(crate) async fn ports(
    client: &mut Client,
    every: Option<Duration>,
    out: &mut Output,
) -> Result<(), Failure> {
    match every {
        None => Ok(out.show(client.ports().await?.as_slice(), rows::ports)?),
        Some(every) => {
            let rates = |before: &Vec<_>, now: &Vec<_>, seconds| rates::ports(before, now, seconds);
            watch(every, out, async || client.ports().await, rates, |rates| rates::ports_table(rates)).await
        }
    }
}

pub(crate) async fn workers(
    client: &mut Client,
    every: Option<Duration>,
    out: &mut Output,
) -> Result<(), Failure> {
    match every {
        None => Ok(out.show(client.workers().await?.as_slice(), rows::workers)?),
        Some(every) => {
            let rates = |before: &Vec<_>, now: &Vec<_>, seconds| rates::workers(before, now, seconds);
            watch(every, out, async || client.workers().await, rates, |rates| rates::workers_table(rates))
                .await
        }
    }
}

pub(crate) async fn drops(
    client: &mut Client,
    all: bool,
    every: Option<Duration>,
    out: &mut Output,
) -> Result<(), Failure> {
    match every {
        None => Ok(out.show(client.drops(all).await?.as_slice(), rows::drops)?),
        Some(every) => {
            let rates = |before: &Vec<_>, now: &Vec<_>, seconds| rates::drops(before, now, seconds);
            watch(every, out, async || client.drops(all).await, rates, |rates| rates::drops_table(rates))
                .await
        }
    }
}

/// JSON goes out flow by flow; the text table needs all of them for its widths.
pub(crate) async fn flows(client: &mut Client, query: &FlowQuery, out: &mut Output) -> Result<(), Failure> {
    let mut stream = client.flows(query).await?;
    let mut flows = Vec::new();
    let mut count: u64 = 0;
    while let Some(flow) = stream.next().await? {
        count += 1;
        if out.is_json() {
            out.line(&flow, |_| String::new())?;
        } else {
            flows.push(flow);
        }
    }
    if !out.is_json() {
        out.show(flows.as_slice(), rows::flows)?;
    }
    if query.limit.is_some_and(|limit| u64::from(limit) == count) {
        eprintln!("penstock: these are the first {count} flows; --limit N shows more, --limit 0 all");
    }
    Ok(())
}

pub(crate) async fn routes(
    client: &mut Client,
    network: Option<&Name>,
    out: &mut Output,
) -> Result<(), Failure> {
    Ok(out.show(client.routes(network).await?.as_slice(), rows::routes)?)
}

pub(crate) async fn peers(client: &mut Client, out: &mut Output) -> Result<(), Failure> {
    Ok(out.show(client.peers().await?.as_slice(), rows::peers)?)
}

/// The text is TOML, so that what one daemon says another can be told.
pub(crate) async fn objects(client: &mut Client, out: &mut Output) -> Result<(), Failure> {
    let tables: Tables = client.objects().await?.into_iter().collect();
    let text = toml::to_string(&tables)
        .map_err(|error| Failure::Output(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
    Ok(out.show(&tables, |_| text)?)
}

pub(crate) async fn explain(
    client: &mut Client,
    question: &Question,
    out: &mut Output,
) -> Result<(), Failure> {
    Ok(out.show(&client.explain(question).await?, rows::explanation)?)
}
