//! Naming a function so that another copy of the same image can call it.
//!
//! A [`Call`] is two distances: from an anchor function of this crate to the function, and from the
//! anchor to a trampoline that was compiled for the function's argument and result types. Address
//! space randomisation moves an image as a whole, so the distances are the same in every process
//! that runs the same image. That it is the same image is made certain twice: the child is started
//! from `/proc/self/exe`, the parent's own inode, and [`Identity`] is compared in the handshake.
//!
//! A function of another shared object has no fixed distance from the anchor, and is refused by
//! [`Call::new`] before anything is sent.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::serve::Run;

/// Runs the items of one span: decodes, calls the function, encodes and commits.
///
/// The first argument is the function's address, whose type the trampoline alone knows.
pub(crate) type Trampoline = unsafe fn(*const (), &mut Run<'_>);

/// A function and its trampoline, as distances from the anchor. Only [`name`](crate::serve::name) and
/// its like make one, of a function and a trampoline that fit; from numbers it doesn't compile.
///
/// ```compile_fail,E0451
/// let call = procpool_worker::function::Call { function: 1, trampoline: 2 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Call {
    /// Distance of the function.
    pub(crate) function: u64,
    /// Distance of the trampoline.
    pub(crate) trampoline: u64,
}

/// The function is not part of the executable's own image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the function is in another shared object than procpool: only functions that are linked into the executable itself can be sent to a worker"
)]
pub struct ForeignFunction;

/// A call that does not point into this image's code: the peer's mistake or malice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the call points outside of this executable's code")]
pub(crate) struct UnknownFunction;

/// What makes two processes copies of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The linker's build id, where it wrote one.
    build_id: Vec<u8>,
    /// Size of the image's code in bytes, and where in it the anchor lies.
    code: u64,
    anchor: u64,
}

impl Call {
    /// Points to no code; for tests.
    #[doc(hidden)]
    pub const NOWHERE: Self = Self { function: u64::MAX / 3, trampoline: u64::MAX / 3 };

    /// Names `function`, to be run by `trampoline`.
    ///
    /// # Errors
    ///
    /// When the function is not in the same image as this crate.
    ///
    /// # Safety
    ///
    /// `trampoline` may be called with `function`, or nothing that this names is ever run as a span.
    pub(crate) unsafe fn new(
        function: *const (),
        trampoline: Trampoline,
    ) -> Result<Self, ForeignFunction> {
        let image = Image::own();
        let distance = |address: *const ()| {
            image
                .holds(address.addr())
                .then(|| address.addr().wrapping_sub(anchor_address()) as u64)
        };
        match (distance(function), distance(trampoline as *const ())) {
            (Some(function), Some(trampoline)) => Ok(Self { function, trampoline }),
            _ => Err(ForeignFunction),
        }
    }

    /// The addresses in this process.
    ///
    /// # Errors
    ///
    /// When they are not in this image's code.
    pub(crate) fn resolve(self) -> Result<(*const (), Trampoline), UnknownFunction> {
        let image = Image::own();
        let address = |distance: u64| {
            let address = anchor_address().wrapping_add(distance as usize);
            image.holds(address).then_some(address as *const ())
        };
        let (Some(function), Some(trampoline)) = (address(self.function), address(self.trampoline))
        else {
            return Err(UnknownFunction);
        };
        // SAFETY: a `Call` is made from a real `Trampoline` only, by a process whose identity was
        // found equal to ours in the handshake, so the same function lies at this distance here.
        Ok((function, unsafe { std::mem::transmute::<*const (), Trampoline>(trampoline) }))
    }
}

impl Identity {
    /// Of the image that this process runs.
    pub fn own() -> Self {
        let image = Image::own();
        Self {
            build_id: image.build_id.clone(),
            code: image.code.iter().map(|range| range.len() as u64).sum(),
            anchor: image.code.first().map_or(0, |c| anchor_address().wrapping_sub(c.start) as u64),
        }
    }
}

/// Distances are measured from here. What it does is of no account, but it must not be merged with
/// another function of the same code.
#[inline(never)]
extern "C" fn anchor() -> u64 {
    std::hint::black_box(0x7072_6f63_706f_6f6c)
}

fn anchor_address() -> usize {
    (anchor as *const ()).addr()
}

/// Where the code of the image lies that this crate is linked into.
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
            // SAFETY: the callback has the signature that is asked for, and `image` outlives the
            // call, which hands it back as `data`.
            unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut image).cast()) };
            image
        })
    }

    fn holds(&self, address: usize) -> bool {
        self.code.iter().any(|range| range.contains(&address))
    }
}

/// Called for each loaded object; stops at the one that holds the anchor.
unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    data: *mut c_void,
) -> c_int {
    // SAFETY: libc hands over a valid description for the time of the call.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: `dlpi_phnum` headers lie at `dlpi_phdr`, as libc says.
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

    unsafe fn trampoline(_: *const (), _: &mut Run<'_>) {}

    #[test]
    fn a_function_of_the_image_is_found_again() {
        fn double(x: u32) -> u32 {
            x * 2
        }
        let address = double as fn(u32) -> u32 as *const ();
        // SAFETY: it is never run.
        let call = unsafe { Call::new(address, trampoline) }.unwrap();
        assert_eq!(call.resolve().unwrap().0, address);
    }

    #[test]
    fn a_function_of_another_shared_object_is_refused() {
        // SAFETY: as above.
        let call = unsafe { Call::new(libc::getpid as *const (), trampoline) };
        assert_eq!(call, Err(ForeignFunction));
    }

    #[test]
    fn a_call_outside_of_the_code_is_refused() {
        assert!(matches!(Call::NOWHERE.resolve(), Err(UnknownFunction)));
        let half = Call { trampoline: 0, ..Call::NOWHERE };
        assert!(matches!(half.resolve(), Err(UnknownFunction)));
    }

    #[test]
    fn a_build_id_is_read_from_notes_and_broken_notes_are_no_harm() {
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
