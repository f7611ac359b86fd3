//! Services that a backend's node answers for directly, past the node that their clients asked.
//!
//! ```text
//!  client -> node that was asked: backend chosen, address rewritten -> [Geneve: what was asked | client -> backend]
//!    ^                                                                                    v
//!    +---------- service -> client, natively ------- backend's node: admitted, a connection from client to service
//! ```
//!
//! The node that was asked sees one side of the conversation only ([`State::OneWay`](crate::conntrack::State::OneWay)). The
//! backend's node has it whole, under the address that the client knows, so that answers leave in that name like any other
//! translated ones.

use penstock_io::Frame;
use penstock_wire::dsr::ServedAs;
use penstock_wire::parse::parse;

use crate::drop::{Cause, Reason};
use crate::flow::{Action, ZoneId};
use crate::pipeline::{self, Leaving, Moment, Pipeline};
use crate::slowpath::{self, Facts, Scene};
use crate::tables::Snapshot;

impl Pipeline {
    /// Sees to it that there is a connection for a packet that a peer sends on for a service; the packet then goes the way
    /// of that connection.
    #[cold]
    pub(crate) fn admit(
        &self,
        at: Moment<'_>,
        zone: ZoneId,
        served_as: &ServedAs,
        frame: &Frame,
    ) -> Result<(), Reason> {
        let parsed = parse(frame.bytes())?;
        let facts = Facts::of(&parsed, frame.bytes()).ok_or(Cause::NotIp)?;
        let tracker = self.tracker.as_ref();
        let scene = Scene { snapshot: at.snapshot, tracker, now: at.now, ledger: Some(&self.ledger) };
        slowpath::admit(scene, zone, served_as, &facts)
    }

    /// As [`Pipeline::carry_out`], for a packet whose tunnel header says what its sender asked for.
    #[inline(never)]
    pub(crate) fn carry_out_served(
        &mut self,
        snapshot: &Snapshot,
        action: Action,
        leaving: Leaving,
        served_as: &ServedAs,
        mut frame: Frame,
    ) {
        let written = pipeline::rewrite(snapshot, &action, leaving, &mut frame);
        let template = snapshot.templates.get(usize::from(action.template().0));
        let stamped = written.and_then(|()| {
            let header = &template.ok_or(Cause::PeerUnresolved)?.header;
            let head = frame.bytes_mut().get_mut(..header.len()).ok_or(Cause::NoHeadroom)?;
            if header.stamp_served_as(head, served_as) { Ok(()) } else { Err(Cause::PeerUnresolved) }
        });
        match stamped {
            Ok(()) => self.outputs.send(action.out(), frame, &mut self.pool, &mut self.tally),
            Err(cause) => self.tally.drop(cause, frame, &mut self.pool),
        }
    }
}

/// What a packet asks for before its addresses are rewritten: its destination, and the port where its transport header
/// begins.
#[inline(never)]
pub(crate) fn asked_by(frame: &[u8], l3: usize, l4: usize, is_ipv4: bool) -> Option<ServedAs> {
    let port = u16::from_be_bytes(*frame.get(l4 + 2..)?.first_chunk()?);
    let address = if is_ipv4 {
        (*frame.get(l3 + 16..)?.first_chunk::<4>()?).into()
    } else {
        (*frame.get(l3 + 24..)?.first_chunk::<16>()?).into()
    };
    Some(ServedAs { address, port })
}
