//! What a network card is told about its virtual functions.

use std::fmt;

use futures::TryStreamExt;
use futures::future::BoxFuture;
use penstock_wire::MacAddr;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkVfInfo, VfInfo, VfInfoMac, VfInfoRate, VfInfoSpoofCheck, VfInfoTrust,
    VfInfoVlan,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use serde::{Deserialize, Serialize};

use super::netns::{LinkError, Links};

/// What a card does for one of its functions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FunctionState {
    /// The address that the card gave it; zeros when the function may choose.
    pub mac: [u8; 6],
    /// The VLAN that it is in without knowing; 0 for none.
    pub vlan: u16,
    /// The priority of its packets in that VLAN.
    pub qos: u8,
    /// Whether it may do what concerns others, such as receiving their packets; `None` when the card does not say.
    pub trust: Option<bool>,
    /// Whether what it sends from another address is dropped; `None` when the card does not say.
    pub spoof_check: Option<bool>,
    /// The rate in Mbit/s that it has for sure; 0 for none.
    pub min_rate: u32,
    /// The rate in Mbit/s that it cannot exceed; 0 for none.
    pub max_rate: u32,
}

/// One thing that a card is told about a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// The VLAN with its priority; 0 for none.
    Vlan(u16, u8),
    /// The Ethernet address.
    Mac([u8; 6]),
    /// Whether it is trusted.
    Trust(bool),
    /// Whether the addresses that it sends from are checked.
    SpoofCheck(bool),
    /// The least and the highest rate in Mbit/s.
    Rate(u32, u32),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vlan(vlan, qos) => write!(f, "VLAN {vlan} with priority {qos}"),
            Self::Mac(mac) => write!(f, "address {}", MacAddr(*mac)),
            Self::Trust(on) => write!(f, "trust {on}"),
            Self::SpoofCheck(on) => write!(f, "spoof check {on}"),
            Self::Rate(least, most) => write!(f, "rate {least} to {most} Mbit/s"),
        }
    }
}

impl FunctionState {
    /// What a card has to be told so that this becomes `wanted`, in order.
    pub fn steps_to(&self, wanted: &Self) -> Vec<Setting> {
        let mut steps = Vec::new();
        if (self.vlan, self.qos) != (wanted.vlan, wanted.qos) {
            steps.push(Setting::Vlan(wanted.vlan, wanted.qos));
        }
        if self.mac != wanted.mac {
            steps.push(Setting::Mac(wanted.mac));
        }
        // What the card never said, nothing is known to go back to.
        let changed = |is: Option<bool>, to: Option<bool>| to.filter(|_| is != to);
        steps.extend(changed(self.trust, wanted.trust).map(Setting::Trust));
        steps.extend(changed(self.spoof_check, wanted.spoof_check).map(Setting::SpoofCheck));
        if (self.min_rate, self.max_rate) != (wanted.min_rate, wanted.max_rate) {
            steps.push(Setting::Rate(wanted.min_rate, wanted.max_rate));
        }
        steps
    }

    /// What it is after a setting.
    pub fn apply(&mut self, setting: Setting) {
        match setting {
            Setting::Vlan(vlan, qos) => (self.vlan, self.qos) = (vlan, qos),
            Setting::Mac(mac) => self.mac = mac,
            Setting::Trust(on) => self.trust = Some(on),
            Setting::SpoofCheck(on) => self.spoof_check = Some(on),
            Setting::Rate(least, most) => (self.min_rate, self.max_rate) = (least, most),
        }
    }
}

/// The cards of a node.
pub trait Cards: Send + Sync + fmt::Debug + 'static {
    /// How a card treats its function of this number.
    fn state<'a>(&'a self, card: &'a str, number: u32) -> BoxFuture<'a, Result<FunctionState, LinkError>>;

    /// Tells a card something about its function of this number.
    fn set<'a>(
        &'a self,
        card: &'a str,
        number: u32,
        setting: Setting,
    ) -> BoxFuture<'a, Result<(), LinkError>>;
}

/// The kernel's cards, by netlink.
#[derive(Debug, Clone, Copy, Default)]
pub struct KernelCards;

impl Cards for KernelCards {
    fn state<'a>(&'a self, card: &'a str, number: u32) -> BoxFuture<'a, Result<FunctionState, LinkError>> {
        Box::pin(async move {
            let mut question = Links::here()?.handle.link().get().match_name(card);
            question = question.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::Vf]);
            let found = question.execute().try_next().await;
            let link = found.map_err(LinkError::of("ask about the functions of", card))?;
            let attributes = link.map(|it| it.attributes).unwrap_or_default();
            let functions = attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::VfInfoList(functions) => Some(functions),
                _ => None,
            });
            let all = functions.unwrap_or_default();
            let found = all.iter().find_map(|LinkVfInfo(said)| state(said, number));
            found.ok_or_else(|| LinkError::NoFunction { card: card.to_owned(), number })
        })
    }

    fn set<'a>(
        &'a self,
        card: &'a str,
        number: u32,
        setting: Setting,
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move {
            let (what, said) = match setting {
                Setting::Vlan(vlan, qos) => (
                    "set the VLAN of a function of",
                    VfInfo::Vlan(VfInfoVlan::new(number, vlan.into(), qos.into())),
                ),
                Setting::Mac(mac) => {
                    ("set the address of a function of", VfInfo::Mac(VfInfoMac::new(number, &mac)))
                }
                Setting::Trust(on) => {
                    ("set the trust in a function of", VfInfo::Trust(VfInfoTrust::new(number, on)))
                }
                Setting::SpoofCheck(on) => {
                    let said = VfInfo::SpoofCheck(VfInfoSpoofCheck::new(number, on));
                    ("set the spoof check of a function of", said)
                }
                Setting::Rate(least, most) => {
                    ("set the rate of a function of", VfInfo::Rate(VfInfoRate::new(number, least, most)))
                }
            };
            let links = Links::here()?;
            let index = links.expect(card).await?.index;
            let message: LinkMessageBuilder<LinkUnspec> = LinkUnspec::new_with_index(index);
            let told = LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![said])]);
            let message = message.append_extra_attribute(told).build();
            links.handle.link().set(message).execute().await.map_err(LinkError::of(what, card))
        })
    }
}

/// What a card says of its function `number`, if this is about that one.
fn state(said: &[VfInfo], number: u32) -> Option<FunctionState> {
    let mut state = FunctionState::default();
    let mut is_it = false;
    for info in said {
        match info {
            VfInfo::Mac(it) if it.vf_id == number => {
                is_it = true;
                state.mac.copy_from_slice(&it.mac[..6]);
            }
            VfInfo::Vlan(it) if it.vf_id == number => {
                state.vlan = u16::try_from(it.vlan_id).unwrap_or_default();
                state.qos = u8::try_from(it.qos).unwrap_or_default();
            }
            VfInfo::Trust(it) if it.vf_id == number => state.trust = Some(it.enabled),
            VfInfo::SpoofCheck(it) if it.vf_id == number => state.spoof_check = Some(it.enabled),
            VfInfo::Rate(it) if it.vf_id == number => {
                (state.min_rate, state.max_rate) = (it.min_tx_rate, it.max_tx_rate);
            }
            _ => {}
        }
    }
    is_it.then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_state() -> impl Strategy<Value = FunctionState> {
        let small = (
            any::<[u8; 6]>(),
            0u16..3,
            0u8..3,
            any::<Option<bool>>(),
            any::<Option<bool>>(),
            0u32..3,
            0u32..3,
        );
        small.prop_map(|(mac, vlan, qos, trust, spoof_check, min_rate, max_rate)| FunctionState {
            mac,
            vlan,
            qos,
            trust,
            spoof_check,
            min_rate,
            max_rate,
        })
    }

    proptest! {
        #[test]
        fn the_steps_lead_there_and_no_further(from in any_state(), to in any_state()) {
            let mut state = from.clone();
            from.steps_to(&to).into_iter().for_each(|step| state.apply(step));
            let trust = to.trust.or(from.trust);
            let spoof_check = to.spoof_check.or(from.spoof_check);
            prop_assert_eq!(&state, &FunctionState { trust, spoof_check, ..to.clone() });
            prop_assert_eq!(state.steps_to(&to), []);
        }
    }

    #[test]
    fn a_function_is_found_among_its_siblings() {
        let said = [
            VfInfo::Mac(VfInfoMac::new(3, &[2, 0, 0, 0, 0, 3])),
            VfInfo::Vlan(VfInfoVlan::new(3, 100, 5)),
            VfInfo::Rate(VfInfoRate::new(3, 10, 1000)),
            VfInfo::SpoofCheck(VfInfoSpoofCheck::new(3, true)),
        ];
        let found = state(&said, 3).unwrap();
        let wanted = FunctionState {
            mac: [2, 0, 0, 0, 0, 3],
            vlan: 100,
            qos: 5,
            trust: None,
            spoof_check: Some(true),
            min_rate: 10,
            max_rate: 1000,
        };
        assert_eq!(found, wanted);
        assert_eq!(state(&said, 2), None);
    }
}
