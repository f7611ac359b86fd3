//! ICMP messages other than echoes and errors: no connection is kept of them, so each is judged by its own type and code.

use super::{Occasion, Stages, cause_of};
use crate::conntrack::Tuple;
use crate::drop::Cause;
use crate::flow::Tracked;
use crate::slowpath::{Verdict, Watch};
use crate::tables::Zone;

impl<W: Watch> Stages<'_, W> {
    /// The verdict about `message`, which neither is an answer that may pass because of the question nor asks a service.
    pub(in crate::slowpath) fn pass(&mut self, message: Tuple) -> Verdict {
        self.watch.stage("connection", || ("none".into(), "none is kept of ICMP other than echo".into()));
        if matches!(self.zone, Zone::Served { .. }) {
            return Verdict::Drop(Cause::NotServed.into());
        }
        let routed = match self.route(&message) {
            Ok(routed) => routed,
            Err(verdict) => return verdict,
        };
        let ends = self.ends(&message, &message);
        let ruling = self.judge(&ends, &message, &message, Occasion::Opening);
        if let Some(cause) = cause_of(ruling) {
            return Verdict::Drop(cause.into());
        }
        match self.source_pool(&message, &message, None, &routed) {
            Ok(None) => self.link(routed, &message, &message, Tracked::NONE, true),
            // Its sender's address means nothing outside, and no answer would find back.
            Ok(Some(_)) => Verdict::Drop(Cause::NotTranslatable.into()),
            Err(cause) => Verdict::Drop(cause.into()),
        }
    }
}
