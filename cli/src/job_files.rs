//! `--results DIR`: a directory for each job, with what it printed and how it ended.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::exit::Usage;
use super::render::{self, Form, OutputFields, PlainOptions, Render};
use super::row::Row;
use super::screen::Page;
use super::spill::Printed;
use crate::args::Format;

/// Characters of an input in the name of a directory.
const NAME: usize = 80;

/// The directories of jobs.
pub(super) struct JobFiles {
    dir: PathBuf,
    /// Writes `meta.json`.
    meta: Box<dyn Render>,
    prints: OutputFields,
}

/// Whether `--results` names a directory: one that exists, or a path that ends with a slash.
pub(super) fn is_directory(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.is_dir()
}

impl JobFiles {
    /// Creates the directory, unless it exists.
    ///
    /// # Errors
    ///
    /// When it can't be created.
    pub(super) fn create(dir: &Path, form: &Form) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|error| {
            Usage::error(format!("failed to create {dir:?}: {error}; check --results"))
        })?;
        let without = Form { prints: OutputFields::None, ..*form };
        let meta = render::renderer(Format::Json, &without, PlainOptions::default());
        Ok(Self { dir: dir.to_owned(), meta, prints: form.prints })
    }

    /// Writes the files of a job that has ended, in place of those of an earlier run.
    ///
    /// # Errors
    ///
    /// When they can't be written.
    pub(super) fn write(&mut self, row: &Row) -> Result<()> {
        let dir = self.dir.join(name(row));
        self.write_to(&dir, row)
            .with_context(|| format!("failed to write the results of a job to {dir:?}"))
    }

    fn write_to(&mut self, dir: &Path, row: &Row) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        if self.prints != OutputFields::None {
            print(&dir.join("stdout"), &row.stdout)?;
        }
        if self.prints == OutputFields::Both {
            print(&dir.join("stderr"), &row.stderr)?;
        }
        let mut page = Page::default();
        self.meta.row(row, &mut page);
        fs::write(dir.join("meta.json"), page.deref())
    }
}

fn print(path: &Path, printed: &Printed) -> io::Result<()> {
    let mut file = File::create(path)?;
    match printed {
        Printed::Here(bytes) => file.write_all(bytes),
        Printed::InFile(part) => part.copy_to(&mut file),
        Printed::Named(_) => Ok(()),
    }
}

/// Returns the name of a job's directory: its number, so that none is there twice, and what of its input is
/// safe in a name.
fn name(row: &Row) -> String {
    let is_safe = |it: &char| it.is_alphanumeric() || ".,_-+=@".contains(*it);
    let input = row.input.to_text();
    let safe = input.chars().take(NAME).map(|it| if is_safe(&it) { it } else { '_' });
    let mut name = format!("{:06}", row.number);
    if !input.is_empty() {
        name.push('-');
        name.extend(safe);
    }
    // A name has at most 255 bytes.
    while name.len() > 200 {
        name.pop();
    }
    name
}
