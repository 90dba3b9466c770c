//! The file of a page. It is opened before the work and written after it.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::exit::Usage;

/// A file for a page.
pub(crate) struct Target {
    file: File,
    path: PathBuf,
}

impl Target {
    /// Opens the file, and leaves it as it is.
    ///
    /// # Errors
    ///
    /// When it can't be written.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::options().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| {
            Usage::error(format!("failed to write the report to {path:?}: {error}; check --report"))
        })?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Replaces the content of the file.
    ///
    /// # Errors
    ///
    /// When it can't be written.
    pub(super) fn write(mut self, page: &str) -> Result<()> {
        let mut write = || {
            // A pipe has no length and no position.
            if self.file.metadata()?.is_file() {
                self.file.set_len(0)?;
                self.file.seek(SeekFrom::Start(0))?;
            }
            self.file.write_all(page.as_bytes())?;
            self.file.flush()
        };
        write().with_context(|| format!("failed to write the report to {:?}", self.path))
    }
}
