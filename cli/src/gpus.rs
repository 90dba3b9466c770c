//! The GPUs of `--gpus`, and how many workers each has.

use std::str::FromStr;

/// A GPU, and how many workers share it: `0`, `1:2`, or `GPU-5c7b:2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gpu {
    name: String,
    workers: usize,
}

impl FromStr for Gpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, workers) = match text.rsplit_once(':') {
            None => (text, 1),
            Some((name, workers)) => {
                let number = workers.parse().ok().filter(|workers| (1..=4096).contains(workers));
                let wrong = || {
                    format!("'{workers}' is no number of workers: after the colon, use 1 to 4096")
                };
                (name, number.ok_or_else(wrong)?)
            }
        };
        if name.is_empty() {
            return Err("a GPU has no name: use its number, such as 0".to_owned());
        }
        Ok(Self { name: name.to_owned(), workers })
    }
}

/// Returns the GPU of each worker, one after the other: each GPU in turn, as often as it has workers.
pub(super) fn in_turn(gpus: &[Gpu]) -> Vec<String> {
    let rounds = gpus.iter().map(|gpu| gpu.workers).max().unwrap_or(0);
    let round = |round| gpus.iter().filter(move |gpu| gpu.workers > round);
    (0..rounds).flat_map(round).map(|gpu| gpu.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_gpu_has_its_workers_in_turn() {
        let parse =
            |list: &str| -> Vec<Gpu> { list.split(',').map(|it| it.parse().unwrap()).collect() };
        assert_eq!(in_turn(&parse("2,5")), ["2", "5"]);
        assert_eq!(in_turn(&parse("0:2,1:3")), ["0", "1", "0", "1", "1"]);
        assert_eq!(in_turn(&parse("GPU-5c7b:2")), ["GPU-5c7b", "GPU-5c7b"]);
        for wrong in ["", ":2", "0:", "0:0", "0:x"] {
            assert!(wrong.parse::<Gpu>().is_err(), "{wrong}");
        }
    }
}
