//! Classifies characters as white space or printable, in the locale of the environment.
//!
//! The answer depends on the locale, on whether it is installed, and on the C library's version of
//! Unicode. With tables of its own, this program would disagree with the system's tools on some bytes
//! of one file in some thousands. It therefore calls the C library, with a locale object of its own:
//! `setlocale` would change the whole process.
//!
//! This file owns the calls into the C library and nothing else. They are those of POSIX.1-2008.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::ptr;
use std::sync::OnceLock;

/// The class of a character, by which words are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Ends a word.
    Space,
    /// Makes a sequence of characters a word.
    Printable,
    /// Does neither: a control character, or bytes that are not a character.
    Neither,
}

/// The character set of a locale.
pub(super) struct Locale {
    /// Null if the system does not have the locale. The C locale is used then, as after a failed
    /// `setlocale`.
    object: *mut c_void,
    utf8: bool,
    bytes: [Class; 256],
}

// SAFETY: POSIX lets several threads use a locale object at once if none of them frees or changes it.
// It is never freed, and the functions that are called with it here only read it.
unsafe impl Send for Locale {}
// SAFETY: as above.
unsafe impl Sync for Locale {}

impl Locale {
    /// Returns the locale of the environment: that of LC_ALL, LC_CTYPE or LANG.
    pub(super) fn of_environment() -> &'static Self {
        static LOCALE: OnceLock<Locale> = OnceLock::new();
        LOCALE.get_or_init(|| Self::named(c""))
    }

    /// Returns the locale of that name, or the C locale if the system does not have it.
    pub(super) fn named(name: &CStr) -> Self {
        // SAFETY: the name ends in NUL, and a null base requests a new object. The mask selects the only
        // category that is used.
        let object = unsafe { newlocale(LC_CTYPE_MASK, name.as_ptr(), ptr::null_mut()) };
        let mut locale = Self { object, utf8: false, bytes: [Class::Neither; 256] };
        locale.utf8 = locale.codeset().is_some_and(|name| name.eq_ignore_ascii_case(b"UTF-8"));
        for byte in 0..=u8::MAX {
            locale.bytes[usize::from(byte)] = locale.classify_byte(byte);
        }
        locale
    }

    /// Returns whether characters are encoded in UTF-8. If not, each byte is a character.
    pub(super) fn is_utf8(&self) -> bool {
        self.utf8
    }

    /// Returns the class of a character of one byte: in UTF-8 an ASCII character, otherwise any.
    pub(super) fn class_of_byte(&self, byte: u8) -> Class {
        self.bytes[usize::from(byte)]
    }

    /// Returns the class of a Unicode character.
    pub(super) fn class_of_char(&self, character: char) -> Class {
        // The C library does not count no-break spaces as white space, but wc does.
        if matches!(character, '\u{a0}' | '\u{2007}' | '\u{202f}' | '\u{2060}') {
            return Class::Space;
        }
        if self.object.is_null() {
            return Class::Neither;
        }
        let code = character.into();
        // SAFETY: the object is a live locale, and any Unicode code point is a valid wide character: on
        // Linux they are the same numbers.
        let (print, space) =
            unsafe { (iswprint_l(code, self.object), iswspace_l(code, self.object)) };
        class(print, space)
    }

    fn codeset(&self) -> Option<&[u8]> {
        if self.object.is_null() {
            return None;
        }
        // SAFETY: the object is a live locale. The result ends in NUL and is part of the object, which is
        // never freed or changed.
        let name = unsafe { CStr::from_ptr(nl_langinfo_l(CODESET, self.object)) };
        Some(name.to_bytes())
    }

    fn classify_byte(&self, byte: u8) -> Class {
        // ASCII white space is white space in every locale. Not all of it is printable.
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c) {
            return Class::Space;
        }
        if self.object.is_null() {
            return if byte.is_ascii_graphic() { Class::Printable } else { Class::Neither };
        }
        // SAFETY: the object is a live locale, and the functions accept every value of an unsigned char.
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

/// The category of character sets. glibc and musl use the same bit.
const LC_CTYPE_MASK: c_int = 1;

/// Selects the name of the encoding. glibc and musl use the same number.
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
#[cfg(not(miri))] // Miri has no C library.
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
