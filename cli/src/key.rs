//! Identifies a job across runs.

use sha2::{Digest, Sha256};

/// The key of a job: the first half of a SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct JobKey(pub(super) u128);

impl JobKey {
    /// Hashes these parts in this order.
    pub(super) fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut state = Sha256::new();
        for part in parts {
            state.update((part.len() as u64).to_le_bytes());
            state.update(part);
        }
        let digest: [u8; 32] = state.finalize().into();
        let [half, _] = [0, 16].map(|at| std::array::from_fn(|index| digest[at + index]));
        Self(u128::from_be_bytes(half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_kept_apart() {
        assert_ne!(JobKey::of([&b"ab"[..], b"c"]), JobKey::of([&b"a"[..], b"bc"]));
        assert_eq!(JobKey::of([&b"x"[..]]), JobKey::of([&b"x"[..]]));
    }
}
