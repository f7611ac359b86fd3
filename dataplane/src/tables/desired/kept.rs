//! Something made of the configuration, kept until what it follows from changes.

use penstock_api::model::Key;

use super::{Desired, Mark};

/// What was made, of which moment of the configuration, and of which grounds beside it.
#[derive(Debug)]
pub struct Kept<G, T>(Option<(Mark, G, T)>);

impl<G, T> Default for Kept<G, T> {
    fn default() -> Self {
        Kept(None)
    }
}

impl<G: PartialEq, T: Clone> Kept<G, T> {
    /// What there is, made anew if an object changed that matters or the grounds are others.
    pub fn follow(
        &mut self,
        desired: &Desired,
        matters: impl Fn(&Key) -> bool,
        grounds: G,
        make: impl FnOnce(&G) -> T,
    ) -> T {
        let kept = self.0.take().filter(|(mark, before, _)| {
            let changed = desired.changed_since(*mark);
            *before == grounds && changed.is_some_and(|mut keys| !keys.any(&matters))
        });
        let made = kept.map_or_else(|| make(&grounds), |(_, _, made)| made);
        self.0 = Some((desired.mark(), grounds, made.clone()));
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::desired::Change;
    use penstock_api::file::parse_objects;
    use penstock_api::model::Node;

    #[test]
    fn it_is_made_anew_when_what_it_follows_from_changes_and_only_then() {
        let mut desired = Desired::new(Node { name: "n1".parse().unwrap(), mac: None }, None);
        let (mut kept, mut made) = (Kept::default(), 0);
        let mut follow = |desired: &Desired, grounds: &'static str| {
            let before = made;
            kept.follow(desired, |key| matches!(key, Key::Network(_)), grounds, |_| made += 1);
            made > before
        };
        let add = |desired: &mut Desired, text: &str| {
            desired.apply(Change::Upsert(parse_objects(text, "test").unwrap())).unwrap();
        };
        assert!(follow(&desired, "a") && !follow(&desired, "a"));
        add(&mut desired, "[[peer]]\nname = \"p\"\naddress = \"192.0.2.1\"\n");
        assert!(!follow(&desired, "a"), "a peer does not matter");
        add(&mut desired, "[[network]]\nname = \"n\"\nvni = 1\n");
        assert!(follow(&desired, "a") && !follow(&desired, "a"));
        assert!(follow(&desired, "b"), "other grounds");
        assert!(follow(&desired.clone(), "b"), "a copy goes ways of its own");
    }
}
