//! The way of wanted objects to the dataplane: what is [`Wanted`] now is sent, and all of it again after either side restarts.
//!
//! ```text
//!  translate, attachments --> Wanted (objects, keys that changed) --> Pusher --> Sink: upsert, delete --> penstockd
//!                                 ^  one map, whatever comes meanwhile            |
//!                                 +----- Progress: live up to here, refused ------+
//! ```

mod delivery;
mod metrics;
mod pusher;
mod wanted;

pub use delivery::{Delivered, Sink, deliver};
pub use metrics::PushMetrics;
pub use pusher::{Dataplane, EVENTS, Pusher};
pub use wanted::{Progress, Refused, Ticket, Wanted};
