//! ICMP errors, which pass with the connection that they are about.

use super::Stages;
use crate::conntrack::ConnectionRef;
use crate::drop::Cause;
use crate::slowpath::Watch;

impl<W: Watch> Stages<'_, W> {
    /// Whether policies let `connection` pass, and so what is said of its packets.
    pub(in crate::slowpath) fn allows(&mut self, connection: ConnectionRef) -> Result<(), Cause> {
        let connection = self.tracker.table.view(connection).ok_or(Cause::Unsolicited)?;
        self.still_refused(&connection).map_or(Ok(()), Err)
    }
}
