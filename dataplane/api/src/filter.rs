//! The language that chooses which frames are captured, close to what packet capture programs speak.
//!
//! ```text
//! EXPR  = EXPR or EXPR | EXPR and EXPR | not EXPR | ( EXPR ) | inner ( EXPR ) | TERM
//! TERM  = [tcp|udp|sctp] [src|dst] port N      a port of TCP, UDP or SCTP
//!       | [ip|ip6] [src|dst] host A            an IPv4 or IPv6 address; `src A` and `dst A` will do
//!       | [ip|ip6] [src|dst] net P             a prefix
//!       | tcp | udp | sctp | icmp | icmp6      a transport protocol
//!       | ip | ip6 | arp                       what the frame carries
//!       | proto N                              an IP protocol by number or by one of the names above
//!       | vni N                                VXLAN or Geneve with this network identifier
//! ```
//!
//! `not` binds before `and`, `and` before `or`; `!`, `&&` and `||` are the same words. `inner` looks at the frame
//! inside a VXLAN or Geneve tunnel on its standard UDP port. An empty expression takes every frame. On a frame that is
//! malformed no term holds, so `not` of a term does.

mod eval;
mod parse;

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use penstock_wire::Vni;
use thiserror::Error;

use crate::dissect::Facts;

/// The longest expression in bytes.
pub const MAX_LEN: usize = 4096;
/// How deep parentheses and `not` may nest; evaluation uses that much stack at most.
pub const MAX_DEPTH: usize = 32;

/// A filter that has been read and found sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    text: String,
    /// `None` takes every frame.
    expr: Option<Expr>,
}

impl Filter {
    /// The filter that takes every frame.
    pub const ALL: Self = Self { text: String::new(), expr: None };

    /// Whether `frame`, which begins with its Ethernet header, is one of those meant.
    ///
    /// Never panics and never allocates, whatever the bytes are.
    pub fn matches(&self, frame: &[u8]) -> bool {
        self.expr.as_ref().is_none_or(|expr| eval::holds(expr, &Facts::of(frame)))
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        Ok(Self { text: text.trim().to_owned(), expr: parse::parse(text)? })
    }
}

/// The expression as it was written.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// Why an expression cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilterError {
    /// Something else should stand there.
    #[error("at character {at}: {found} where {wanted} should stand")]
    Unexpected {
        /// Where, counted in characters from 1.
        at: usize,
        /// What stands there: a word in quotes, or the end.
        found: String,
        /// What should.
        wanted: &'static str,
    },
    /// More parentheses or `not` inside each other than allowed.
    #[error("at character {at}: nested more than {MAX_DEPTH} deep")]
    TooDeep {
        /// Where, counted in characters from 1.
        at: usize,
    },
    /// More bytes than allowed.
    #[error("the expression is {len} bytes long; {MAX_LEN} are allowed")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
}

/// A sound expression.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expr {
    Term(Term),
    Not(Box<Expr>),
    /// Two or more.
    All(Vec<Expr>),
    /// Two or more.
    Any(Vec<Expr>),
    /// Holds for the frame in the tunnel.
    Inner(Box<Expr>),
}

/// What is asked of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Term {
    Net { side: Side, net: IpNet },
    Port { side: Side, port: u16, protocol: Option<u8> },
    Protocol(u8),
    Icmp,
    Icmpv6,
    Ipv4,
    Ipv6,
    Arp,
    Vni(Vni),
}

/// Which end of a packet's way is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Either,
    Source,
    Destination,
}

impl Side {
    fn holds(self, source: bool, destination: bool) -> bool {
        match self {
            Self::Either => source || destination,
            Self::Source => source,
            Self::Destination => destination,
        }
    }
}

#[cfg(test)]
mod tests;
