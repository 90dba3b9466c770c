//! Pages of tables and pictures, for `compare` and `isolate`.

use anyhow::Result;
use askama::Template;

use super::page::{self, STYLE};
use super::target::Target;
use crate::spill::base64;

/// A page.
#[derive(Default)]
pub(crate) struct Document {
    pub(crate) title: String,
    /// Sentences below the title.
    pub(crate) lead: Vec<String>,
    /// Names of pictures, and SVG.
    pub(crate) pictures: Vec<(String, Vec<u8>)>,
    pub(crate) tables: Vec<DocumentTable>,
}

pub(crate) struct DocumentTable {
    pub(crate) title: String,
    pub(crate) heads: Vec<String>,
    /// A cell may have several lines.
    pub(crate) rows: Vec<Vec<String>>,
    pub(crate) note: String,
    /// Whether all columns but the first have numbers.
    pub(crate) has_numbers: bool,
}

#[derive(Template)]
#[template(path = "document.html")]
struct Page<'a> {
    policy: String,
    style: &'static str,
    title: &'a str,
    command: String,
    lead: &'a [String],
    pictures: Vec<(&'a str, String)>,
    tables: &'a [DocumentTable],
}

impl Document {
    /// Writes the page to a file that was [opened](Target::open) before.
    ///
    /// # Errors
    ///
    /// When the file can't be written.
    pub(crate) fn write(&self, target: Target) -> Result<()> {
        let mut pictures = Vec::new();
        for (name, svg) in &self.pictures {
            let mut data = b"data:image/svg+xml;base64,".to_vec();
            base64(svg, &mut data);
            pictures.push((name.as_str(), String::from_utf8_lossy(&data).into_owned()));
        }
        let page = Page {
            policy: page::policy("img-src data:", None),
            style: STYLE,
            title: &self.title,
            command: page::command_line(),
            lead: &self.lead,
            pictures,
            tables: &self.tables,
        };
        target.write(&page.render()?)
    }
}
