//! The command that shows or stores the frames that pass a port.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use penstock_api::client::{Client, Stream};
use penstock_api::describe::Description;
use penstock_api::proto::{CapturedFrame, Direction};
use penstock_api::query::CaptureOrder;
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;
use crate::output::Output;
use crate::pcap::PcapWriter;
use crate::table::printable;

/// Where frames go.
enum Sink<'a> {
    Pcap(PcapWriter<Box<dyn Write>>),
    Lines(&'a mut Output),
}

impl Sink<'_> {
    fn take(&mut self, frame: &CapturedFrame) -> io::Result<()> {
        match self {
            Self::Pcap(writer) => writer.frame(frame.timestamp_ns, &frame.data, frame.length),
            Self::Lines(out) if out.is_json() => out.line(&as_json(frame), |_| String::new()),
            Self::Lines(out) => out.line(&(), |()| line(frame)),
        }
    }
}

/// Captures until the daemon has met a limit, someone interrupts, or whoever reads has gone.
pub(crate) async fn capture(
    client: &mut Client,
    order: &CaptureOrder,
    file: Option<&Path>,
    out: &mut Output,
) -> Result<(), Failure> {
    let mut stream = client.capture(order).await?;
    // Opened only now: a capture that the daemon refuses must not empty a file.
    let mut sink = match file {
        None => Sink::Lines(out),
        Some(path) => {
            let (what, sink) = open(path);
            let writer = sink.and_then(|sink| PcapWriter::new(sink, order.snaplen));
            Sink::Pcap(writer.map_err(|source| Failure::Io { what, source })?)
        }
    };
    let is_file = file.is_some_and(|path| path != Path::new("-"));
    let (frames, lost) = until_done(&mut stream, &mut sink, !is_file).await?;
    if file.is_some() || lost > 0 {
        eprintln!("penstock: {frames} frames captured, {lost} lost");
    }
    Ok(())
}

fn open(path: &Path) -> (String, io::Result<Box<dyn Write>>) {
    if path == Path::new("-") {
        ("writing to standard output".to_owned(), Ok(Box::new(io::stdout())))
    } else {
        let file = File::create(path).map(|file| Box::new(file) as Box<dyn Write>);
        (format!("writing {}", path.display()), file)
    }
}

/// Passes frames on and answers how many there were, and how many were lost.
async fn until_done(
    stream: &mut Stream<CapturedFrame>,
    sink: &mut Sink<'_>,
    to_stdout: bool,
) -> Result<(u64, u64), Failure> {
    let on =
        |kind| signal(kind).map_err(|source| Failure::Io { what: "watching for signals".to_owned(), source });
    let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let mut gone = std::pin::pin!(reader_gone(to_stdout));
    let (mut frames, mut lost) = (0, 0);
    loop {
        let frame = tokio::select! {
            frame = stream.next() => frame?,
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
            () = &mut gone => None,
        };
        let Some(frame) = frame else { return Ok((frames, lost)) };
        lost += frame.lost;
        match sink.take(&frame) {
            Ok(()) => frames += 1,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok((frames, lost)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns when standard output is a pipe that nobody reads any more, even if no frame comes that would show it.
async fn reader_gone(to_stdout: bool) {
    // Opened anew through /proc, since watching makes a descriptor non-blocking and our writes must block.
    // What is no pipe cannot be opened like this and need not be watched.
    let pipe = pipe::OpenOptions::new().open_sender("/proc/self/fd/1");
    match pipe {
        Ok(pipe) if to_stdout && pipe.ready(Interest::ERROR).await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

fn way(frame: &CapturedFrame) -> &'static str {
    match frame.direction() {
        Direction::Rx => "rx",
        Direction::Tx => "tx",
    }
}

/// `09:15:00.123456789 web rx 10.1.0.7:5353 > 10.2.0.9:53 udp, 120 bytes`, in UTC.
fn line(frame: &CapturedFrame) -> String {
    let (seconds, nanoseconds) = (frame.timestamp_ns / 1_000_000_000, frame.timestamp_ns % 1_000_000_000);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let lost = if frame.lost > 0 { format!(" ({} lost before)", frame.lost) } else { String::new() };
    let port = printable(&frame.port);
    let description = Description::of(&frame.data, frame.length as usize);
    format!("{hour:02}:{minute:02}:{second:02}.{nanoseconds:09} {port} {} {description}{lost}", way(frame))
}

fn as_json(frame: &CapturedFrame) -> Value {
    let data: String = frame.data.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "timestamp_ns": frame.timestamp_ns,
        "direction": way(frame),
        "port": frame.port,
        "worker": frame.worker,
        "length": frame.length,
        "description": Description::of(&frame.data, frame.length as usize).to_string(),
        "data": data,
        "lost": frame.lost,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_time_port_way_and_description() {
        let frame = CapturedFrame {
            timestamp_ns: 1_700_000_000_000_000_042,
            direction: Direction::Tx.into(),
            port: "web".to_owned(),
            worker: 0,
            length: 60,
            data: vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xcc, 0],
            lost: 3,
        };
        let expected =
            "22:13:20.000000042 web tx 02:00:00:00:00:01 > 02:00:00:00:00:02 type 0x88cc (3 lost before)";
        assert_eq!(line(&frame), expected);
        assert_eq!(as_json(&frame)["data"], "02000000000202000000000188cc00");
    }
}
