//! What is white space and what can be printed, in the locale this process was started in.
//!
//! Only the C library knows: it depends on the locale that the environment names, on whether it is
//! installed, and on the version of Unicode its tables were made from. Tables of our own would give
//! other answers than the tools of the same system for some bytes of one file in some thousands. So
//! it is asked, through a locale object of our own: `setlocale` would change the whole process.
//!
//! This file owns the calls into the C library and nothing else. They are those of POSIX.1-2008.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::ptr;
use std::sync::OnceLock;

/// What a character does to the word that it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Ends it.
    Space,
    /// Makes it one.
    Printable,
    /// Nothing: a control character, or bytes that are no character.
    Neither,
}

/// The character set of a locale.
pub(super) struct Locale {
    /// Null where the system has no such locale; then it is the C locale, as it is after a failed
    /// `setlocale`.
    object: *mut c_void,
    utf8: bool,
    bytes: [Class; 256],
}

// SAFETY: POSIX lets any threads use one locale object at a time, so long as none frees or changes
// it; it is never freed (a process makes one) and the functions that are called with it here only
// read it.
unsafe impl Send for Locale {}
// SAFETY: as above.
unsafe impl Sync for Locale {}

impl Locale {
    /// That of the environment: of LC_ALL, LC_CTYPE or LANG.
    pub(super) fn of_environment() -> &'static Self {
        static LOCALE: OnceLock<Locale> = OnceLock::new();
        LOCALE.get_or_init(|| Self::named(c""))
    }

    /// The one of that name, if the system has it, or else the C locale.
    pub(super) fn named(name: &CStr) -> Self {
        // SAFETY: the name ends in NUL; a null base asks for a new object. The mask names the one
        // category that is wanted, so it needs no others.
        let object = unsafe { newlocale(LC_CTYPE_MASK, name.as_ptr(), ptr::null_mut()) };
        let mut locale = Self { object, utf8: false, bytes: [Class::Neither; 256] };
        locale.utf8 = locale.codeset().is_some_and(|name| name.eq_ignore_ascii_case(b"UTF-8"));
        for byte in 0..=u8::MAX {
            locale.bytes[usize::from(byte)] = locale.ask_for_byte(byte);
        }
        locale
    }

    /// Whether characters are encoded in UTF-8; where they aren't, each byte is one.
    pub(super) fn is_utf8(&self) -> bool {
        self.utf8
    }

    /// The class of a character that is one byte: any ASCII one, and all others where it isn't
    /// UTF-8.
    pub(super) fn class_of_byte(&self, byte: u8) -> Class {
        self.bytes[usize::from(byte)]
    }

    /// The class of a character of Unicode.
    pub(super) fn class_of_char(&self, character: char) -> Class {
        // Spaces at which a line doesn't break aren't spaces to the C library, but to wc they are.
        if matches!(character, '\u{a0}' | '\u{2007}' | '\u{202f}' | '\u{2060}') {
            return Class::Space;
        }
        if self.object.is_null() {
            return Class::Neither;
        }
        let code = character.into();
        // SAFETY: the object is a live locale, and any code of Unicode is a valid wide character:
        // on Linux they are the same numbers.
        let (print, space) =
            unsafe { (iswprint_l(code, self.object), iswspace_l(code, self.object)) };
        class(print, space)
    }

    fn codeset(&self) -> Option<&[u8]> {
        if self.object.is_null() {
            return None;
        }
        // SAFETY: the object is a live locale; the answer ends in NUL and is part of the object,
        // which is never freed or changed.
        let name = unsafe { CStr::from_ptr(nl_langinfo_l(CODESET, self.object)) };
        Some(name.to_bytes())
    }

    fn ask_for_byte(&self, byte: u8) -> Class {
        // White space of ASCII is that in every locale, and not all of it can be printed.
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c) {
            return Class::Space;
        }
        if self.object.is_null() {
            return if byte.is_ascii_graphic() { Class::Printable } else { Class::Neither };
        }
        // SAFETY: the object is a live locale, and the functions take every number that an unsigned
        // char holds.
        let (print, space) =
            unsafe { (isprint_l(byte.into(), self.object), isspace_l(byte.into(), self.object)) };
        class(print, space)
    }
}

impl fmt::Debug for Locale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locale").field("utf8", &self.utf8).finish_non_exhaustive()
    }
}

fn class(print: c_int, space: c_int) -> Class {
    match (print != 0, space != 0) {
        (true, true) => Class::Space,
        (true, false) => Class::Printable,
        (false, _) => Class::Neither,
    }
}

/// The category of character sets; the same bit in glibc and musl.
const LC_CTYPE_MASK: c_int = 1;

/// Asks for the name of the encoding; the same number in glibc and musl.
const CODESET: c_int = 14;

unsafe extern "C" {
    fn newlocale(mask: c_int, name: *const c_char, base: *mut c_void) -> *mut c_void;
    fn nl_langinfo_l(item: c_int, locale: *mut c_void) -> *const c_char;
    fn isprint_l(character: c_int, locale: *mut c_void) -> c_int;
    fn isspace_l(character: c_int, locale: *mut c_void) -> c_int;
    fn iswprint_l(character: c_uint, locale: *mut c_void) -> c_int;
    fn iswspace_l(character: c_uint, locale: *mut c_void) -> c_int;
}

#[cfg(test)]
#[cfg(not(miri))] // which has no C library to ask
mod tests {
    use super::*;

    #[test]
    fn ascii_is_the_same_in_every_locale() {
        for name in [c"C", c"C.UTF-8", c"no such locale"] {
            let locale = Locale::named(name);
            for byte in 0..128 {
                let expected = match byte {
                    b' ' | 9..=13 => Class::Space,
                    b'!'..=b'~' => Class::Printable,
                    _ => Class::Neither,
                };
                assert_eq!(locale.class_of_byte(byte), expected, "{byte} in {name:?}");
            }
        }
    }

    #[test]
    fn a_locale_that_is_not_there_is_the_c_locale() {
        let locale = Locale::named(c"no such locale");
        assert!(!locale.is_utf8() && !Locale::named(c"C").is_utf8());
        assert_eq!(locale.class_of_byte(0xe9), Class::Neither);
    }
}
