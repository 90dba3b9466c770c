//! References to functions that are valid in every process of the same image.
//!
//! A [`FnRef`] is two distances: from an anchor function of this crate to the function, and from the
//! anchor to a trampoline that was compiled for the function's argument and result types. Address space
//! randomisation moves an image as a whole, so the distances are the same in every process of that image.
//! Two measures ensure that it is the same image: the child is started from `/proc/self/exe`, the parent's
//! own inode, and the handshake compares the [`ImageId`].
//!
//! A function of another shared object has no fixed distance from the anchor. [`FnRef::new`] refuses it
//! before anything is sent.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// A function and its trampoline, as distances from the anchor. Only [`FnRef::task`] and its siblings
/// create one, from a function and the trampoline that fits it. Numbers don't compile:
///
/// ```compile_fail,E0451
/// let call = procpool_worker::function::FnRef { function: 1, trampoline: 2 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FnRef {
    /// Distance of the function.
    pub(crate) function: u64,
    /// Distance of the trampoline.
    pub(crate) trampoline: u64,
}

/// A preload function and what calls it, as distances from the anchor. Not a task: it is called without a
/// chunk, in the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreloadRef(pub(crate) FnRef);

/// What creates the state of a call, for the trampoline of that call alone. Not a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitRef(pub(crate) FnRef);

/// The function is not part of the executable's own image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the function is in another shared object than procpool: only functions that are linked into the executable itself can be sent to a worker"
)]
pub struct ForeignFunction;

/// A reference that does not point into this image's code: the peer is broken or hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the function reference points outside of this executable's code")]
pub(crate) struct UnknownFunction;

/// Identifies an image. Two processes of one image have equal ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageId {
    /// The linker's build id; empty if there is none.
    build_id: Vec<u8>,
    /// Size of the image's code in bytes, and the anchor's offset in it.
    code: u64,
    anchor: u64,
}

impl FnRef {
    /// Points to no code. For tests.
    #[doc(hidden)]
    pub const NOWHERE: Self = Self { function: u64::MAX / 3, trampoline: u64::MAX / 3 };

    /// References `function`, to be run by the trampoline at the address `trampoline`.
    ///
    /// # Errors
    ///
    /// When one of them is not in the same image as this crate.
    ///
    /// # Safety
    ///
    /// `trampoline` is a [`Trampoline`](crate::run::trampoline::Trampoline) that may be called with
    /// `function`, or the returned reference is never run as a span.
    pub(crate) unsafe fn new(
        function: *const (),
        trampoline: *const (),
    ) -> Result<Self, ForeignFunction> {
        let image = Image::own();
        let distance = |address: *const ()| {
            image
                .holds(address.addr())
                .then(|| address.addr().wrapping_sub(anchor_address()) as u64)
        };
        match (distance(function), distance(trampoline)) {
            (Some(function), Some(trampoline)) => Ok(Self { function, trampoline }),
            _ => Err(ForeignFunction),
        }
    }

    /// Returns the addresses of the function and of its trampoline in this process.
    ///
    /// # Errors
    ///
    /// When one of them is outside of this image's code.
    pub(crate) fn resolve(self) -> Result<(*const (), *const ()), UnknownFunction> {
        let image = Image::own();
        let address = |distance: u64| {
            let address = anchor_address().wrapping_add(distance as usize);
            image.holds(address).then_some(address as *const ())
        };
        match (address(self.function), address(self.trampoline)) {
            (Some(function), Some(trampoline)) => Ok((function, trampoline)),
            _ => Err(UnknownFunction),
        }
    }
}

impl std::fmt::Display for ImageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("build ")?;
        match self.build_id.is_empty() {
            true => write!(f, "without an id, {} bytes of code", self.code),
            false => self.build_id.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

impl ImageId {
    /// Returns whether it tells all builds apart. Without the linker's build id, two builds of equal size may
    /// have equal ids.
    pub fn has_build_id(&self) -> bool {
        !self.build_id.is_empty()
    }

    /// Returns the id of this process's image.
    pub fn own() -> Self {
        let image = Image::own();
        Self {
            build_id: image.build_id.clone(),
            code: image.code.iter().map(|range| range.len() as u64).sum(),
            anchor: image.code.first().map_or(0, |c| anchor_address().wrapping_sub(c.start) as u64),
        }
    }
}

/// Distances are measured from here. The body only keeps the function from being merged with another
/// one.
#[inline(never)]
extern "C" fn anchor() -> u64 {
    std::hint::black_box(0x7072_6f63_706f_6f6c)
}

fn anchor_address() -> usize {
    (anchor as *const ()).addr()
}

/// The code ranges of the image that this crate is linked into.
#[derive(Debug, Default)]
struct Image {
    code: Vec<Range<usize>>,
    build_id: Vec<u8>,
}

impl Image {
    fn own() -> &'static Self {
        static OWN: OnceLock<Image> = OnceLock::new();
        OWN.get_or_init(|| {
            let mut image = Image::default();
            // SAFETY: the callback has the requested signature. `image` outlives the call, which passes it
            // to the callback as `data`.
            unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut image).cast()) };
            image
        })
    }

    fn holds(&self, address: usize) -> bool {
        self.code.iter().any(|range| range.contains(&address))
    }
}

/// Called for each loaded object. Stops at the one that holds the anchor.
unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    data: *mut c_void,
) -> c_int {
    // SAFETY: libc passes a description that is valid during the call.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: libc guarantees `dlpi_phnum` headers at `dlpi_phdr`.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let memory = |header: &libc::Elf64_Phdr| {
        let start = (info.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
        start..start.wrapping_add(header.p_memsz as usize)
    };
    let code: Vec<_> = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0)
        .map(memory)
        .collect();
    if !code.iter().any(|range| range.contains(&anchor_address())) {
        return 0;
    }
    // SAFETY: `data` is the `Image` that `Image::own` passed.
    let image = unsafe { &mut *data.cast::<Image>() };
    image.code = code;
    for note in headers.iter().filter(|header| header.p_type == libc::PT_NOTE).map(memory) {
        // SAFETY: a note segment of a loaded object is mapped and never written.
        let notes = unsafe { std::slice::from_raw_parts(note.start as *const u8, note.len()) };
        if let Some(id) = build_id(notes) {
            image.build_id = id.to_vec();
        }
    }
    1
}

/// Finds the linker's build id (`NT_GNU_BUILD_ID`) in a segment of ELF notes.
fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let word = |bytes: &[u8]| bytes.first_chunk().map(|word| u32::from_ne_bytes(*word));
    loop {
        let name_len = word(notes)? as usize;
        let len = word(notes.get(4..)?)? as usize;
        let kind = word(notes.get(8..)?)?;
        let name = notes.get(12..)?.get(..name_len)?;
        let start = 12 + name_len.next_multiple_of(4);
        let id = notes.get(start..)?.get(..len)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(id);
        }
        notes = notes.get(start + len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TRAMPOLINE: *const () = anchor as *const ();

    #[test]
    fn a_function_of_the_image_is_found_again() {
        fn double(x: u32) -> u32 {
            x * 2
        }
        let address = double as fn(u32) -> u32 as *const ();
        // SAFETY: the reference is never run.
        let call = unsafe { FnRef::new(address, TRAMPOLINE) }.unwrap();
        assert_eq!(call.resolve().unwrap().0, address);
    }

    #[test]
    fn a_function_of_another_shared_object_is_refused() {
        // SAFETY: as above.
        let call = unsafe { FnRef::new(libc::getpid as *const (), TRAMPOLINE) };
        assert_eq!(call, Err(ForeignFunction));
    }

    #[test]
    fn a_reference_outside_of_the_code_is_refused() {
        assert!(matches!(FnRef::NOWHERE.resolve(), Err(UnknownFunction)));
        let half = FnRef { trampoline: 0, ..FnRef::NOWHERE };
        assert!(matches!(half.resolve(), Err(UnknownFunction)));
    }

    #[test]
    fn a_build_id_is_read_from_notes_and_broken_notes_are_harmless() {
        let mut notes = Vec::new();
        for (kind, name, id) in [(1, b"abc\0", &[9u8, 9, 9][..]), (3, b"GNU\0", &[1, 2, 3, 4])] {
            notes.extend([4, id.len() as u32, kind].iter().flat_map(|word| word.to_ne_bytes()));
            notes.extend(name);
            notes.extend(id);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        assert_eq!(build_id(&notes), Some(&[1, 2, 3, 4][..]));
        for cut in 0..notes.len() {
            assert_eq!(build_id(&notes[..cut]), None);
        }
    }
}
