//! One HTML page with its style and its drawings inside.

use std::fmt::Write;

use super::chart::{bars, escaped, latencies};
use super::{claim, ratio};
use crate::document::{Compared, Document, Latency};
use crate::statistics::{Claim, mean_and_deviation};

const STYLE: &str = include_str!("page.css");

/// The page of some results.
#[must_use]
pub fn page(document: &Document) -> String {
    let mut body = header(document);
    if !document.comparisons.is_empty() {
        body += &beside_peers(document);
    }
    if !document.latencies.is_empty() {
        body += &latency_plots(document);
    }
    body += &trials(document);
    body += &searches(document);
    body += &lookups(document);
    body += &changes(document);
    body += &machine(document);
    format!(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\
         <meta name='viewport' content='width=device-width, initial-scale=1'>\
         <title>Penstock, measured {}</title><style>{STYLE}</style></head><body>{body}</body></html>\n",
        document.machine.date()
    )
}

fn header(document: &Document) -> String {
    let machine = &document.machine;
    let claims = |wanted: Claim| {
        let claims = document.comparisons.iter().filter_map(|compared| compared.ratio);
        claims.filter(|ratio| ratio.claim == wanted).count()
    };
    let mut text = format!(
        "<h1>Penstock, measured</h1><p class='soft'>{} &middot; {}</p>",
        escaped(&machine.date()),
        escaped(&machine.line())
    );
    let all = document.comparisons.len();
    if all > 0 {
        let (faster, slower) = (claims(Claim::Faster), claims(Claim::Slower));
        let tiles = [
            (faster, "rows faster than the peer"),
            (slower, "rows slower: misses"),
            (all - faster - slower, "rows without a claim"),
        ];
        text += "<div class='tiles'>";
        for (count, what) in tiles {
            let _ = write!(text, "<div class='tile'><b>{count}</b><small>{what}</small></div>");
        }
        text += "</div>";
    }
    text
}

fn beside_peers(document: &Document) -> String {
    let mut text = String::from(
        "<h2>Beside peers</h2><p>The same frames, in turns on the same CPU: ours, the peer, ours again. Bars are medians of \
         all rounds, the thin lines go from the least to the greatest figure. The ratio is the median over the rounds, with \
         its 95 % interval; where it is not larger than what ours differs from itself, nothing is claimed.</p>\
         <p><i class='key ko'></i>Penstock <i class='key kp'></i>peer</p><div class='rows'>",
    );
    document.comparisons.iter().for_each(|compared| text += &row(compared));
    text += "</div><details><summary>Who they were and how they were set</summary><div class='scroll'><table>\
             <tr><th>row</th><th class='text'>Penstock</th><th class='text'>peer</th><th>noise</th><th>steal</th><th>repeated</th></tr>";
    for compared in &document.comparisons {
        let note = compared
            .note
            .as_ref()
            .map_or(String::new(), |note| format!("<br><small>{}</small>", escaped(note)));
        let _ = write!(
            text,
            "<tr><td>{}{note}</td><td class='text'>{}</td><td class='text'>{}</td><td>{:.1} %</td><td>{:.2} %</td><td>{}</td></tr>",
            escaped(&compared.row),
            escaped(&compared.ours),
            escaped(&compared.peer),
            compared.ratio.map_or(f64::NAN, |ratio| ratio.noise * 100.0),
            compared.steal * 100.0,
            compared.repeated
        );
    }
    text + "</table></div></details>"
}

fn row(compared: &Compared) -> String {
    let class = match compared.ratio.map(|ratio| ratio.claim) {
        Some(Claim::Faster) => "faster",
        Some(Claim::Slower) => "slower",
        _ => "none",
    };
    let peer = compared.peer.split([',', ':']).next().unwrap_or_default();
    let median = compared.ratio.map_or("?".to_owned(), |ratio| format!("{:.2} x", ratio.median));
    let interval = compared
        .ratio
        .map_or(String::new(), |ratio| format!("{:.2} to {:.2}", ratio.interval.low, ratio.interval.high));
    format!(
        "<div class='row' title='{}'><div><h3>{}</h3><small>beside {}</small></div><div>{}</div>\
         <div class='verdict {class}'><b>{median}</b><small>{interval}<br>{}</small></div></div>",
        escaped(&ratio(compared.ratio.as_ref())),
        escaped(&compared.title),
        escaped(peer),
        bars(compared),
        claim(compared)
    )
}

fn latency_plots(document: &Document) -> String {
    let mut text = String::from(
        "<h2>Latency</h2><p>From the moment at which a packet was to be sent by its schedule, so that no packet waits for \
         another to be answered. Each step to the right is ten times as rare.</p>",
    );
    let mut titles: Vec<&str> = document.latencies.iter().map(|latency| latency.title.as_str()).collect();
    titles.dedup();
    for title in titles {
        let group: Vec<&Latency> =
            document.latencies.iter().filter(|latency| latency.title == title).collect();
        let _ = write!(text, "<figure><figcaption>{}</figcaption>{}<p>", escaped(title), latencies(&group));
        for (number, latency) in group.iter().enumerate() {
            let share =
                latency.share.map_or(String::new(), |share| format!("{:.0} % of PDR, ", share * 100.0));
            let _ = write!(
                text,
                "<i class='key k{}'></i><small>{share}{:.3} Mpps, {} packets, {} lost</small>",
                number % 5,
                latency.rate / 1e6,
                latency.received,
                latency.lost
            );
        }
        text += "</p></figure>";
    }
    text
}

/// A table, if it has rows; cells of the first column and those that begin with a letter are text.
fn table(title: &str, lead: &str, heads: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = format!("<h2>{title}</h2><p>{lead}</p><div class='scroll'><table><tr>");
    heads.iter().for_each(|head| text += &format!("<th>{head}</th>"));
    text += "</tr>";
    for row in rows {
        text += "<tr>";
        row.iter().for_each(|cell| text += &format!("<td>{}</td>", escaped(cell)));
        text += "</tr>";
    }
    text + "</table></div>"
}

fn trials(document: &Document) -> String {
    let rows: Vec<Vec<String>> = document
        .trials
        .iter()
        .map(|measured| {
            let outcome = &measured.outcome;
            let sound = if outcome.is_sound() { "yes" } else { "no" };
            vec![
                measured.profile.title(),
                format!("{:.2}", outcome.mpps),
                format!("{:.1}", outcome.cycles),
                format!("{:.1}", outcome.least_cycles),
                format!("{:.2}", outcome.gbit_l1),
                format!("{} of {}", outcome.lost_frames(), outcome.offered),
                format!("{:.2} %", outcome.validity.steal * 100.0),
                sound.to_owned(),
            ]
        })
        .collect();
    let heads = ["path", "Mpps", "cycles a packet", "best window", "Gbit/s L1", "lost", "steal", "sound"];
    table("Trials", "One path each, alone.", &heads, &rows)
}

fn searches(document: &Document) -> String {
    let mut rows = Vec::new();
    for searched in &document.searches {
        let (mean, deviation) = mean_and_deviation(&searched.mrr);
        rows.extend(searched.found.iter().map(|found| {
            let rate = |rate: Option<f64>| rate.map_or("none".to_owned(), super::mpps);
            vec![
                searched.profile.title(),
                format!("{}, {} %", found.goal.name, found.goal.loss * 100.0),
                rate(found.throughput),
                format!("{} to {}", rate(found.lower), rate(found.upper)),
                format!("{} +- {}", super::mpps(mean), super::mpps(deviation)),
                searched.trials.to_string(),
            ]
        }));
    }
    let lead = "NDR: no frame is lost (RFC 2544's throughput); PDR: one in two hundred at most; by RFC 9971's search. MRR: \
                what arrives at full load.";
    table("Rates without loss", lead, &["path", "goal", "Mpps", "bounds", "MRR", "trials"], &rows)
}

fn lookups(document: &Document) -> String {
    let rows: Vec<Vec<String>> = document
        .lookups
        .iter()
        .map(|lookup| {
            vec![
                lookup.title.clone(),
                lookup.contender.clone(),
                format!("{:.1}", lookup.cycles),
                lookup.note.clone(),
            ]
        })
        .collect();
    table("Look-ups", "Ticks of the time-stamp counter for one.", &["what", "who", "cycles", "how"], &rows)
}

fn changes(document: &Document) -> String {
    let rows: Vec<Vec<String>> = document
        .changes
        .iter()
        .map(|changed| {
            vec![
                format!("{}, {} policies, {} endpoints", changed.title, changed.policies, changed.endpoints),
                format!("{:.2}", changed.p50_ms),
                format!("{:.2}", changed.p99_ms),
                format!("{:.0}", changed.compile_ms),
                format!("{:.1}", changed.table_bytes as f64 / 1e6),
                format!("{:.1}", changed.resident_bytes as f64 / 1e6),
                format!("{:.2}", changed.mpps),
                changed.lost.to_string(),
            ]
        })
        .collect();
    let heads = [
        "change",
        "p50, ms",
        "p99, ms",
        "all compiled, ms",
        "tables, MB",
        "process, MB",
        "Mpps meanwhile",
        "lost",
    ];
    table("Changes", "From the change until every worker goes by it, while it forwards.", &heads, &rows)
}

fn machine(document: &Document) -> String {
    let machine = &document.machine;
    let calibration = &machine.calibration;
    let (reserved, free) = machine.hugepages;
    let mut facts = vec![
        ("processor".to_owned(), machine.processor.clone()),
        ("CPUs".to_owned(), format!("{}{}", machine.cpus, if machine.hypervisor { ", virtual" } else { "" })),
        (
            "clock".to_owned(),
            format!(
                "TSC {:.4} GHz, steady to {:.4} %",
                calibration.ticks_per_second / 1e9,
                calibration.drift * 100.0
            ),
        ),
        (
            "noise".to_owned(),
            format!(
                "{:.2} % of an idle loop, longest gap {:.0} us",
                calibration.noise * 100.0,
                calibration.longest_gap_us
            ),
        ),
        ("kernel".to_owned(), machine.kernel.clone()),
        ("huge pages".to_owned(), format!("{reserved} of 2 MiB, {free} free")),
    ];
    facts.extend(machine.versions.iter().cloned());
    facts.extend(machine.mitigations.iter().cloned());
    let mut text = String::from("<h2>Machine</h2><dl>");
    for (name, said) in facts {
        let _ = write!(text, "<dt>{}</dt><dd>{}</dd>", escaped(&name), escaped(&said));
    }
    text += "</dl><h2>Commands</h2>";
    for command in document.command.lines() {
        let _ = write!(text, "<p><code>{}</code></p>", escaped(command));
    }
    text + &format!("<p class='soft'>{:.0} s in all.</p>", document.seconds)
}
