//! A pod attached by vhost-user, in this process: its driver's rings, and a TCP/IP stack of smoltcp's on them.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use penstock_vhost::driver::{Pod, PodConfig};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Address};

/// How long a pod tries to connect, and how long anything it waits for may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of each socket's buffers.
const BUFFER: usize = 128 * 1024;

/// An accelerated pod with one address and a way out of it.
pub struct Accelerated {
    pub pod: Pod,
    address: Ipv4Address,
    interface: Interface,
    sockets: SocketSet<'static>,
    epoch: Instant,
}

impl Accelerated {
    /// Vhost endpoint `j` of node `i`, at the socket that its daemon serves.
    pub fn at(socket: &Path, i: u8, j: u8, config: PodConfig) -> Accelerated {
        Accelerated::over(Pod::connect(socket, PATIENCE, config).expect("the daemon serves the socket"), i, j)
    }

    /// The same at a socket that the pod serves.
    pub fn serving(listener: &UnixListener, i: u8, j: u8, config: PodConfig) -> Accelerated {
        Accelerated::over(Pod::accept(listener, PATIENCE, config).expect("the daemon connects"), i, j)
    }

    fn over(mut pod: Pod, i: u8, j: u8) -> Accelerated {
        let epoch = Instant::now();
        let config = Config::new(EthernetAddress([2, 3, 0, 0, i, j]).into());
        let mut interface = Interface::new(config, &mut pod, smoltcp::time::Instant::ZERO);
        let address = Ipv4Address::new(10, 244, i, 100 + j);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(address.into(), 32)).expect("room for an address");
            // It takes an ARP answer only from a subnet of its own; it never sends from this address.
            let beside_gateway = Ipv4Address::new(169, 254, 1, 250);
            addresses.push(IpCidr::new(beside_gateway.into(), 24)).expect("room for an address");
        });
        let gateway = Ipv4Address::new(169, 254, 1, 1);
        interface.routes_mut().add_default_ipv4_route(gateway).expect("room for a route");
        Accelerated { pod, address, interface, sockets: SocketSet::new(Vec::new()), epoch }
    }

    /// Lets the stack do what is to be done; waits a little if that is nothing.
    fn turn(&mut self) {
        let now = smoltcp::time::Instant::from_micros(self.epoch.elapsed().as_micros() as i64);
        let changed = self.interface.poll(now, &mut self.pod, &mut self.sockets);
        if changed == smoltcp::iface::PollResult::None {
            self.pod.wait(Duration::from_millis(1));
        }
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Connects to an address and port; `None` if it is refused or takes longer than `patience`.
    pub fn connect(&mut self, to: &str, port: u16, patience: Duration) -> Option<SocketHandle> {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let handle = self.sockets.add(Socket::new(buffer(), buffer()));
        let to: Ipv4Address = to.parse().expect("an IPv4 address");
        let port_of_ours = 40_000 + (self.epoch.elapsed().as_millis() % 20_000) as u16;
        let from = (IpAddress::from(self.address), port_of_ours);
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        socket.connect(self.interface.context(), (IpAddress::from(to), port), from).expect("a fresh socket");
        let end = Instant::now() + patience;
        while Instant::now() < end {
            self.turn();
            match self.socket(handle).state() {
                State::Established => return Some(handle),
                State::Closed => return None,
                _ => {}
            }
        }
        None
    }

    /// Sends a request and reads all of the answer, up to its end; `act` is told how much there is so far.
    pub fn ask(
        &mut self,
        handle: SocketHandle,
        request: &[u8],
        mut act: impl FnMut(&mut Accelerated, usize),
    ) -> Vec<u8> {
        let (mut sent, mut answer) = (0, Vec::new());
        let mut last = Instant::now();
        loop {
            self.turn();
            let socket = self.socket(handle);
            if sent < request.len() && socket.can_send() {
                sent += socket.send_slice(&request[sent..]).expect("an open socket");
            }
            let before = answer.len();
            while socket.can_recv() {
                let taken = socket.recv(|bytes| {
                    answer.extend_from_slice(bytes);
                    (bytes.len(), ())
                });
                taken.expect("an open socket");
            }
            if !socket.may_recv() && !socket.can_recv() {
                socket.close();
                return answer;
            }
            if answer.len() > before {
                last = Instant::now();
                let so_far = answer.len();
                act(self, so_far);
            }
            assert!(last.elapsed() < PATIENCE, "nothing after {} bytes", answer.len());
        }
    }
}
