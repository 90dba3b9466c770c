//! Caches the regions that later frames and results use again.
//!
//! The parent numbers the regions for arguments, and announces which regions are gone or free. This file numbers the regions for results.

use super::channels::Channels;
use crate::shm::region::Region;
use crate::wire::error::TransportError;
use crate::wire::protocol::{RegionSlice, Reply};

/// The cached regions.
#[derive(Debug, Default)]
pub(crate) struct RegionCache {
    /// Regions for arguments, by number.
    arguments: Vec<(u32, Region)>,
    results: Vec<ResultRegion>,
    /// Number of the last region that was created for a result.
    last_number: u32,
}

#[derive(Debug)]
struct ResultRegion {
    number: u32,
    region: Region,
    /// Whether the parent has consumed its content.
    is_free: bool,
}

impl RegionCache {
    /// Applies a [`Request::Regions`](crate::wire::protocol::Request::Regions).
    pub(crate) fn update(&mut self, gone: &[u32], results_gone: &[u32], results_free: &[u32]) {
        self.arguments.retain(|(number, _)| !gone.contains(number));
        self.results.retain(|result| !results_gone.contains(&result.number));
        for result in &mut self.results {
            result.is_free |= results_free.contains(&result.number);
        }
    }

    /// Caches a region for arguments.
    pub(crate) fn insert_argument(&mut self, number: u32, region: Region) {
        self.arguments.push((number, region));
    }

    /// Removes and returns a region for arguments.
    pub(crate) fn remove_argument(&mut self, number: u32) -> Option<Region> {
        let at = self.arguments.iter().position(|(other, _)| *other == number)?;
        Some(self.arguments.swap_remove(at).1)
    }

    /// Copies a result into the smallest free region that fits, or into a new one, which is passed to
    /// the parent.
    pub(crate) fn store_result(
        &mut self,
        bytes: &[u8],
        channels: &Channels,
    ) -> Result<RegionSlice, TransportError> {
        let fitting = self.results.iter_mut().filter(|result| {
            result.is_free
                && result.region.len() >= bytes.len()
                && result.region.len() / 8 <= bytes.len()
        });
        let len = bytes.len() as u64;
        if let Some(result) = fitting.min_by_key(|result| result.region.len()) {
            result.is_free = false;
            // The part that earlier results did not use may have no memory yet.
            result.region.populate(bytes.len())?;
            result.region.write(0, bytes);
            return Ok(RegionSlice { number: result.number, len, is_new: false, is_cached: true });
        }
        let mut region = Region::copy_of(bytes)?;
        let number = self.last_number.wrapping_add(1);
        let descriptor = region.descriptor().into_iter().collect::<Vec<_>>();
        channels.pass(&Reply::Region { number }, &descriptor)?;
        region.close_descriptor();
        self.last_number = number;
        self.results.push(ResultRegion { number, region, is_free: false });
        Ok(RegionSlice { number, len, is_new: true, is_cached: true })
    }
}
