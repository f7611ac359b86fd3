//! How endpoints are wired, from the messages to the model and back.

use super::Reader;
use crate::model::{Attachment, SocketRole};
use crate::proto;
use crate::proto::attachment::Attachment as Message;

pub(super) fn from_proto(m: Option<proto::Attachment>, reader: &mut Reader) -> Option<Attachment> {
    match reader.present("attachment", m.and_then(|m| m.attachment))? {
        Message::Veth(m) => {
            Some(Attachment::Veth { interface: reader.text("attachment.veth.interface", &m.interface)? })
        }
        Message::Tap(m) => {
            Some(Attachment::Tap { interface: reader.text("attachment.tap.interface", &m.interface)? })
        }
        Message::Pcap(m) => {
            let receive = reader.text("attachment.pcap.receive", &m.receive);
            let transmit = reader.text("attachment.pcap.transmit", &m.transmit);
            Some(Attachment::Pcap { receive: receive?, transmit: transmit? })
        }
        Message::VhostUser(m) => {
            let socket = reader.text("attachment.vhost-user.socket", &m.socket);
            let role = reader.enumeration("attachment.vhost-user.role", m.role).map(|role| match role {
                proto::SocketRole::Client => SocketRole::Client,
                proto::SocketRole::Server => SocketRole::Server,
            });
            let (group, permissions) = (m.group, m.permissions);
            Some(Attachment::VhostUser { socket: socket?, role: role?, group, permissions })
        }
    }
}

impl From<&Attachment> for proto::Attachment {
    fn from(attachment: &Attachment) -> Self {
        let attachment = match attachment {
            Attachment::Veth { interface } => {
                Message::Veth(proto::VethAttachment { interface: interface.to_string() })
            }
            Attachment::Tap { interface } => {
                Message::Tap(proto::TapAttachment { interface: interface.to_string() })
            }
            Attachment::Pcap { receive, transmit } => Message::Pcap(proto::PcapAttachment {
                receive: receive.to_string(),
                transmit: transmit.to_string(),
            }),
            Attachment::VhostUser { socket, role, group, permissions } => {
                let role = match role {
                    SocketRole::Client => proto::SocketRole::Client,
                    SocketRole::Server => proto::SocketRole::Server,
                };
                Message::VhostUser(proto::VhostUserAttachment {
                    socket: socket.to_string(),
                    role: role.into(),
                    group: group.clone(),
                    permissions: *permissions,
                })
            }
        };
        Self { attachment: Some(attachment) }
    }
}
