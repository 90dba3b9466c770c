//! Reads and writes files: one block in memory at most, and errors that name the file and the
//! remedy.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The size of a read: large enough that system calls do not count, small enough for the cache.
const BLOCK: usize = 128 * 1024;

/// Passes a file to `take` block by block, and says how far it is.
pub(super) fn read_blocks(path: &Path, mut take: impl FnMut(&[u8])) -> Result<(), String> {
    let mut file = File::open(path).map_err(|error| explain("read", path, &error))?;
    let mut block = vec![0; BLOCK];
    // A pipe has no length.
    let total = file.metadata().ok().filter(|known| known.is_file()).map(|known| known.len());
    let mut done = 0;
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                take(&block[..length]);
                done += length as u64;
                procpool::progress(done, total);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(explain("read", path, &error)),
        }
    }
}

/// Writes a file atomically: under a temporary name, which a later attempt reuses, and then
/// renamed. Creates the directory if missing.
pub(super) fn write_whole(dir: &Path, name: &Path, content: &[u8]) -> Result<PathBuf, String> {
    fs::create_dir_all(dir).map_err(|error| explain("make the directory", dir, &error))?;
    let path = dir.join(name);
    let mut part = std::ffi::OsString::from(".");
    part.push(name);
    part.push(".part");
    let part = dir.join(part);
    let written = fs::write(&part, content).and_then(|()| fs::rename(&part, &path));
    written.map_err(|error| {
        let _ = fs::remove_file(&part);
        explain("write", &path, &error)
    })?;
    Ok(path)
}

/// Formats an error: the action, the file, the cause and the remedy.
pub(super) fn explain(verb: &str, path: &Path, error: &io::Error) -> String {
    let remedy = match error.kind() {
        ErrorKind::NotFound => {
            "; check the name: it counts from the directory procpool was started in"
        }
        ErrorKind::PermissionDenied => {
            "; check its permissions, and those of the directories above it"
        }
        ErrorKind::IsADirectory => "; pass the files in it instead, as from: find DIR -type f",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "; make room, or use another directory"
        }
        ErrorKind::ReadOnlyFilesystem => "; use a directory that can be written",
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "; a file is where a directory should be"
        }
        _ => "",
    };
    format!("failed to {verb} {path:?}: {error}{remedy}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_comes_whole_and_in_order_whatever_its_size() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17] {
            let content: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let path = write_whole(dir.path(), Path::new("x"), &content).unwrap();
            let mut read = Vec::new();
            read_blocks(&path, |block| read.extend_from_slice(block)).unwrap();
            assert!(read == content, "{size} bytes");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let missing = read_blocks(&dir.path().join("missing"), |_| {}).unwrap_err();
        assert!(missing.contains("missing") && missing.contains("check the name"), "{missing}");
        let directory = read_blocks(dir.path(), |_| {}).unwrap_err();
        assert!(directory.contains("find DIR -type f"), "{directory}");
    }

    #[test]
    fn nothing_is_left_beside_a_file_that_was_written() {
        let dir = tempfile::tempdir().unwrap();
        write_whole(&dir.path().join("new"), Path::new("x"), b"x").unwrap();
        let names: Vec<_> = fs::read_dir(dir.path().join("new")).unwrap().collect();
        assert_eq!(names.len(), 1);
    }
}
