//! The command that shows or stores the frames that pass a port.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use penstock_api::client::Client;
use penstock_api::describe::Description;
use penstock_api::proto::{CapturedFrame, Direction};
use penstock_api::query::CaptureOrder;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::follow::follow;
use crate::output::Output;
use crate::pcap::PcapWriter;
use crate::table::printable;
use crate::units;

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
    let (mut frames, mut lost) = (0_u64, 0_u64);
    let followed = follow(&mut stream, !is_file, |frame| {
        lost += frame.lost;
        sink.take(&frame)?;
        frames += 1;
        Ok(())
    });
    followed.await?;
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

fn way(frame: &CapturedFrame) -> &'static str {
    match frame.direction() {
        Direction::Rx => "rx",
        Direction::Tx => "tx",
    }
}

/// `09:15:00.123456789 web rx 10.1.0.7:5353 > 10.2.0.9:53 udp, 120 bytes`, in UTC.
fn line(frame: &CapturedFrame) -> String {
    let time = units::time_of_day(frame.timestamp_ns);
    let lost = if frame.lost > 0 { format!(" ({} lost before)", frame.lost) } else { String::new() };
    let port = printable(&frame.port);
    let description = Description::of(&frame.data, frame.length as usize);
    format!("{time} {port} {} {description}{lost}", way(frame))
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
