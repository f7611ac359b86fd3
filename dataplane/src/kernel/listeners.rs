//! What the node's own programs listen on, as the kernel lists it.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use penstock_wire::proto;

/// `TCP_LISTEN` (include/net/tcp_states.h), as the kernel's lists have it.
const LISTENS: &str = "0A";
/// `TCP_CLOSE`: a datagram socket that takes from everybody.
const UNCONNECTED: &str = "07";

/// A port that a program of the node takes packets at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListeningPort {
    /// TCP (6) or UDP (17).
    pub protocol: u8,
    /// The address and port; an unspecified address stands for all of the node's, `::` for those of IPv4 as well.
    pub at: SocketAddr,
}

impl ListeningPort {
    /// Whether packets to that address and port would be the program's.
    #[must_use]
    pub fn answers_at(&self, address: IpAddr, port: u16) -> bool {
        let at = self.at.ip();
        let is_any = at.is_unspecified() && (at.is_ipv6() || address.is_ipv4());
        self.at.port() == port && (is_any || at == address)
    }
}

/// The ports of this thread's network namespace that somebody listens on by TCP, or has for datagrams of everybody.
///
/// # Errors
/// When the kernel's lists cannot be read.
pub fn listening_ports() -> io::Result<Vec<ListeningPort>> {
    let mut ports = Vec::new();
    for (list, protocol) in
        [("tcp", proto::TCP), ("tcp6", proto::TCP), ("udp", proto::UDP), ("udp6", proto::UDP)]
    {
        match File::open(format!("/proc/thread-self/net/{list}")) {
            Ok(file) => read_list(BufReader::new(file), protocol, &mut ports)?,
            // A family that the kernel does not speak.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

/// Reads one list (Documentation/networking/proc_net_tcp.rst): a headline, then a socket a line.
fn read_list(list: impl BufRead, protocol: u8, ports: &mut Vec<ListeningPort>) -> io::Result<()> {
    for line in list.lines().skip(1) {
        let line = line?;
        let mut words = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(state)) = (words.next(), words.nth(1)) else { continue };
        match (protocol, state) {
            (proto::TCP, LISTENS) | (proto::UDP, UNCONNECTED) => {}
            // Those that listen come first; of the connections there may be a million.
            (proto::TCP, _) => break,
            _ => continue,
        }
        ports.extend(socket_address(local).map(|at| ListeningPort { protocol, at }));
    }
    Ok(())
}

/// An address and port in hexadecimal digits, the address in words of the machine's byte order.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words = address.as_bytes().chunks(8);
    let words = words.map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok());
    let octets: Vec<u8> =
        words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let address: IpAddr = if octets.len() == 4 {
        Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into()
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).into()
    };
    (port != 0).then(|| SocketAddr::new(address.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_listen_are_listed_and_no_others() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let any = std::net::TcpListener::bind("[::]:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let asks = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        asks.connect(udp.local_addr().unwrap()).unwrap();
        let ports = listening_ports().unwrap();
        let has = |protocol, at| ports.contains(&ListeningPort { protocol, at });
        assert!(has(proto::TCP, tcp.local_addr().unwrap()), "{ports:?}");
        assert!(has(proto::TCP, any.local_addr().unwrap()), "{ports:?}");
        assert!(has(proto::UDP, udp.local_addr().unwrap()), "{ports:?}");
        assert!(!has(proto::TCP, client.local_addr().unwrap()), "{ports:?}");
        assert!(!has(proto::UDP, asks.local_addr().unwrap()), "{ports:?}");
    }

    #[test]
    fn a_program_answers_at_its_address_or_at_all() {
        let answers = |at: &str, address: &str, port| {
            let at = at.parse().unwrap();
            ListeningPort { protocol: proto::TCP, at }.answers_at(address.parse().unwrap(), port)
        };
        assert!(answers("192.0.2.1:80", "192.0.2.1", 80));
        assert!(!answers("192.0.2.1:80", "192.0.2.1", 81));
        assert!(!answers("192.0.2.1:80", "192.0.2.2", 80));
        assert!(answers("0.0.0.0:80", "192.0.2.1", 80) && !answers("0.0.0.0:80", "2001:db8::1", 80));
        assert!(answers("[::]:80", "192.0.2.1", 80) && answers("[::]:80", "2001:db8::1", 80));
    }
}
