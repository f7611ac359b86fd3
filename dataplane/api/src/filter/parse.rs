//! From the text of a filter to a sound expression, by recursive descent.

use std::net::IpAddr;

use ipnet::IpNet;
use penstock_wire::{Vni, proto};

use super::{Expr, FilterError, MAX_DEPTH, MAX_LEN, Side, Term};

/// Reads an expression; `None` for an empty one.
pub(super) fn parse(text: &str) -> Result<Option<Expr>, FilterError> {
    if text.len() > MAX_LEN {
        return Err(FilterError::TooLong { len: text.len() });
    }
    let mut words = Words::new(text);
    if words.peek().is_none() {
        return Ok(None);
    }
    let expr = any(&mut words, 0)?;
    match words.peek() {
        None => Ok(Some(expr)),
        Some(_) => Err(words.unexpected("`and`, `or` or the end")),
    }
}

/// The words of a text: parentheses, `!`, and what stands between spaces and those.
struct Words<'a> {
    text: &'a str,
    /// Byte offset of what has not been taken.
    at: usize,
}

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Self {
        let mut words = Self { text, at: 0 };
        words.skip_spaces();
        words
    }

    fn skip_spaces(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn peek(&self) -> Option<&'a str> {
        let rest = &self.text[self.at..];
        let first = rest.chars().next()?;
        let len = match first {
            '(' | ')' | '!' => 1,
            _ => rest.find(|c: char| c.is_whitespace() || "()!".contains(c)).unwrap_or(rest.len()),
        };
        Some(&rest[..len])
    }

    fn take(&mut self) -> Option<&'a str> {
        let word = self.peek()?;
        self.at += word.len();
        self.skip_spaces();
        Some(word)
    }

    fn take_if(&mut self, wanted: &[&str]) -> bool {
        let found = self.peek().is_some_and(|word| wanted.contains(&word));
        if found {
            self.take();
        }
        found
    }

    /// The next word read by `read`, which answers `None` for what it cannot use.
    fn value<T>(
        &mut self,
        wanted: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, FilterError> {
        let value = self.peek().and_then(read).ok_or_else(|| self.unexpected(wanted))?;
        self.take();
        Ok(value)
    }

    /// Where the next word stands, counted in characters from 1.
    fn place(&self) -> usize {
        self.text[..self.at].chars().count() + 1
    }

    fn unexpected(&self, wanted: &'static str) -> FilterError {
        let found = self.peek().map_or("the end".to_owned(), |word| format!("{word:?}"));
        FilterError::Unexpected { at: self.place(), found, wanted }
    }
}

fn any(words: &mut Words<'_>, depth: usize) -> Result<Expr, FilterError> {
    let mut exprs = vec![all(words, depth)?];
    while words.take_if(&["or", "||"]) {
        exprs.push(all(words, depth)?);
    }
    Ok(if exprs.len() == 1 { exprs.remove(0) } else { Expr::Any(exprs) })
}

fn all(words: &mut Words<'_>, depth: usize) -> Result<Expr, FilterError> {
    let mut exprs = vec![one(words, depth)?];
    while words.take_if(&["and", "&&"]) {
        exprs.push(one(words, depth)?);
    }
    Ok(if exprs.len() == 1 { exprs.remove(0) } else { Expr::All(exprs) })
}

fn one(words: &mut Words<'_>, depth: usize) -> Result<Expr, FilterError> {
    if depth > MAX_DEPTH {
        return Err(FilterError::TooDeep { at: words.place() });
    }
    if words.take_if(&["not", "!"]) {
        Ok(Expr::Not(Box::new(one(words, depth + 1)?)))
    } else if words.take_if(&["("]) {
        closed(words, depth)
    } else if words.take_if(&["inner"]) {
        if !words.take_if(&["("]) {
            return Err(words.unexpected("`(`"));
        }
        Ok(Expr::Inner(Box::new(closed(words, depth)?)))
    } else {
        term(words).map(Expr::Term)
    }
}

/// What stands between parentheses, the opening one taken.
fn closed(words: &mut Words<'_>, depth: usize) -> Result<Expr, FilterError> {
    let expr = any(words, depth + 1)?;
    if words.take_if(&[")"]) { Ok(expr) } else { Err(words.unexpected("`)`, `and` or `or`")) }
}

/// What a term may begin with, for whoever wrote something else.
const TERM: &str =
    "a term (host, net, port, src, dst, proto, vni, inner, tcp, udp, sctp, icmp, icmp6, ip, ip6, arp)";

fn term(words: &mut Words<'_>) -> Result<Term, FilterError> {
    // A protocol or a version stands on its own, or narrows the term behind it.
    let term = match words.peek() {
        Some("icmp") => Term::Icmp,
        Some("icmp6") => Term::Icmpv6,
        Some("arp") => Term::Arp,
        Some("ip") => Term::Ipv4,
        Some("ip6") => Term::Ipv6,
        Some("tcp") => Term::Protocol(proto::TCP),
        Some("udp") => Term::Protocol(proto::UDP),
        Some("sctp") => Term::Protocol(proto::SCTP),
        Some("proto") => {
            words.take();
            return words.value("a protocol: 0 to 255, or a name such as tcp", protocol).map(Term::Protocol);
        }
        Some("vni") => {
            words.take();
            let read = |word: &str| word.parse().ok().and_then(Vni::new);
            return words.value("a VNI: 0 to 16777215", read).map(Term::Vni);
        }
        _ => return placed(words, None),
    };
    words.take();
    let narrows = match words.peek() {
        Some("src" | "dst") => matches!(term, Term::Protocol(_) | Term::Ipv4 | Term::Ipv6),
        Some("port") => matches!(term, Term::Protocol(_)),
        Some("host" | "net") => matches!(term, Term::Ipv4 | Term::Ipv6),
        _ => false,
    };
    if narrows { placed(words, Some(term)) } else { Ok(term) }
}

/// A term about one or both ends of the packet's way, narrowed by a protocol or version before it.
fn placed(words: &mut Words<'_>, narrowed: Option<Term>) -> Result<Term, FilterError> {
    let side = if words.take_if(&["src"]) {
        Side::Source
    } else if words.take_if(&["dst"]) {
        Side::Destination
    } else {
        Side::Either
    };
    let is_version = matches!(narrowed, Some(Term::Ipv4 | Term::Ipv6));
    let is_transport = matches!(narrowed, Some(Term::Protocol(_)));
    let fits = |address: IpAddr| match narrowed {
        Some(Term::Ipv4) => address.is_ipv4(),
        Some(Term::Ipv6) => address.is_ipv6(),
        _ => true,
    };
    if !is_version && words.take_if(&["port"]) {
        let port = words.value("a port: 0 to 65535", |word| word.parse().ok())?;
        let protocol = match narrowed {
            Some(Term::Protocol(protocol)) => Some(protocol),
            _ => None,
        };
        return Ok(Term::Port { side, port, protocol });
    }
    if is_transport {
        return Err(words.unexpected("`port`"));
    }
    if words.take_if(&["net"]) {
        // Host bits would never match, so they are a slip of the pen.
        let read = |word: &str| {
            let net: IpNet = word.parse().ok()?;
            (net.addr() == net.network() && fits(net.addr())).then_some(net)
        };
        let net = words.value("a prefix without host bits, such as 10.1.0.0/16", read)?;
        return Ok(Term::Net { side, net });
    }
    if !words.take_if(&["host"]) && side == Side::Either {
        return Err(words.unexpected(TERM));
    }
    let read = |word: &str| word.parse().ok().filter(|address| fits(*address)).map(IpNet::from);
    let net = words.value("an address, such as 10.1.0.7", read)?;
    Ok(Term::Net { side, net })
}

fn protocol(word: &str) -> Option<u8> {
    match word {
        "tcp" => Some(proto::TCP),
        "udp" => Some(proto::UDP),
        "sctp" => Some(proto::SCTP),
        "icmp" => Some(proto::ICMP),
        "icmp6" => Some(proto::ICMPV6),
        number => number.parse().ok(),
    }
}
