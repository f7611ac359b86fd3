//! TCP between two pods: a stack of smoltcp on each.

use std::time::{Duration, Instant};

use penstock_vhost::driver::Pod;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use super::PATIENCE;

const PORT: u16 = 7000;
/// Bytes of each socket's buffers.
const BUFFER: usize = 256 * 1024;

/// A pod with a stack and one connection.
pub(crate) struct Host {
    pub(crate) pod: Pod,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    epoch: Instant,
}

impl Host {
    /// The host 10.0.0.`number`.
    pub(crate) fn new(mut pod: Pod, number: u8, epoch: Instant) -> Host {
        let config = Config::new(EthernetAddress([2, 0, 0, 0, 0, number]).into());
        let mut interface = Interface::new(config, &mut pod, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::v4(10, 0, 0, number), 24)).unwrap();
        });
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        let handle = sockets.add(socket);
        Host { pod, interface, sockets, handle, epoch }
    }

    pub(crate) fn poll(&mut self) {
        let now = smoltcp::time::Instant::from_micros(self.epoch.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.pod, &mut self.sockets);
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn connect(&mut self, number: u8) {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        let to = (IpAddress::v4(10, 0, 0, number), PORT);
        socket.connect(self.interface.context(), to, 40_000).unwrap();
    }
}

/// Two pods with stacks.
pub(crate) struct Hosts {
    pub(crate) left: Host,
    pub(crate) right: Host,
}

impl Hosts {
    pub(crate) fn new(left: Pod, right: Pod) -> Hosts {
        let epoch = Instant::now();
        Hosts { left: Host::new(left, 1, epoch), right: Host::new(right, 2, epoch) }
    }

    /// Sends `bytes` from left to right over one connection and looks at each that arrives; `act` may disturb meanwhile,
    /// it is told how many have arrived.
    pub(crate) fn transfer(&mut self, bytes: usize, mut act: impl FnMut(&mut Hosts, usize)) {
        let end = Instant::now() + PATIENCE;
        self.right.socket().listen(PORT).unwrap();
        self.left.connect(2);
        let (mut sent, mut got) = (0, 0);
        let mut piece = vec![0; 64 * 1024];
        while got < bytes {
            self.left.poll();
            self.right.poll();
            let before = got;
            if self.left.socket().can_send() && sent < bytes {
                let count = piece.len().min(bytes - sent);
                fill(&mut piece[..count], sent);
                sent += self.left.socket().send_slice(&piece[..count]).unwrap();
            }
            while self.right.socket().can_recv() {
                let count = self.right.socket().recv_slice(&mut piece).unwrap();
                check(&piece[..count], got);
                got += count;
            }
            act(self, got);
            if got == before {
                self.right.pod.wait(Duration::from_micros(500));
            }
            assert!(Instant::now() < end, "{got} of {bytes} bytes arrived, {sent} sent");
        }
    }
}

fn byte(at: usize) -> u8 {
    (at % 251) as u8 ^ (at >> 16) as u8
}

fn fill(piece: &mut [u8], at: usize) {
    piece.iter_mut().enumerate().for_each(|(i, place)| *place = byte(at + i));
}

fn check(piece: &[u8], at: usize) {
    let wrong = piece.iter().enumerate().find(|(i, place)| **place != byte(at + i));
    assert!(wrong.is_none(), "byte {} of the stream is wrong", at + wrong.unwrap().0);
}
