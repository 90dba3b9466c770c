//! `sha256`: the SHA-256 digest of a file, as `sha256sum` prints it.

use std::fmt::Write;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::files::read_blocks;
use super::job::Job;
use super::output::{Column, Output};
use super::task::{Options, Takes, Task};

/// Returns the digest of a file in hexadecimal. Reads it block by block.
pub(crate) fn digest(path: &Path) -> Result<String, String> {
    let mut state = Sha256::new();
    read_blocks(path, |block| state.update(block))?;
    let mut hex = String::with_capacity(64);
    for byte in state.finalize() {
        let _ = write!(hex, "{byte:02x}"); // writing to a String can't fail
    }
    Ok(hex)
}

/// The task's descriptor.
pub(crate) static TASK: Task = Task {
    name: "sha256",
    summary: "the SHA-256 digest of a file, as sha256sum prints it",
    takes: Takes::Files,
    default_inputs: &[],
    input: Column::FILE,
    columns: &[Column::text("sha256", 64)],
    options: Options { out: false, to: &[], points: None, seed: None },
    run,
    output_name: None,
};

fn run(job: Job) -> Result<Output, String> {
    Ok(vec![digest(&job.input.to_path())?.into()])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard() {
        let dir = tempfile::tempdir().unwrap();
        let digest_of = |content: &[u8]| {
            let path = dir.path().join("x");
            std::fs::write(&path, content).unwrap();
            digest(&path).unwrap()
        };
        assert_eq!(
            digest_of(b""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            digest_of(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            digest_of(&vec![b'a'; 1_000_000]),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
        );
    }
}
