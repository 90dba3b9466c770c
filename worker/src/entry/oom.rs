//! Records in the lane that an abort follows a refused allocation, so that the parent can tell an
//! out-of-memory abort from other aborts.
//!
//! errno is no evidence: it stays ENOMEM long after a refusal that the task has handled, and printing may
//! change it. The aborting thread's stack is: it holds Rust's allocation error handler. In C++, the
//! exception in flight is: it is `std::bad_alloc`. A C program's `abort` after a failed `malloc` looks
//! like any other abort and is not recorded.

use std::ffi::c_void;
use std::sync::OnceLock;

use crate::shm::lane::{AbortReason, Words};

/// The lane that [`on_abort`] writes to.
static LANE: OnceLock<&'static Words> = OnceLock::new();

/// Returns the type of the C++ exception in flight, or null.
type CurrentException = extern "C" fn() -> *const TypeInfo;

/// A `std::type_info` as the platforms' C++ ABI defines it.
#[repr(C)]
struct TypeInfo {
    vtable: *const c_void,
    name: *const libc::c_char,
}

/// The function of the C++ library, if the program has one.
static CURRENT_EXCEPTION: OnceLock<Option<CurrentException>> = OnceLock::new();

/// Installs the SIGABRT handler that records [`AbortReason::OutOfMemory`] in `lane`.
pub(super) fn install_handler(lane: &'static Words) {
    let _ = LANE.set(lane);
    // SAFETY: where there is a C++ library, this is its function, of the ABI's type.
    let _ = CURRENT_EXCEPTION.set(unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"__cxa_current_exception_type".as_ptr());
        let is_there = !symbol.is_null();
        is_there.then(|| std::mem::transmute::<*mut c_void, CurrentException>(symbol))
    });
    let handler = on_abort as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void);
    // SAFETY: plain system calls on local data. The handler has comments of its own.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGABRT, &action, std::ptr::null_mut());
    }
}

/// Runs on the aborting thread; `abort` continues after it returns. It acts only when this thread itself has
/// called `abort`, and not on the small stack that reports a stack overflow. It must not allocate: the C library
/// calls `abort` with the lock of the heap held, when it finds the heap damaged.
extern "C" fn on_abort(_signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: plain system calls that write to a local. The kernel passes a valid `info` to a handler
    // that asks for it, with a PID if a process has sent the signal.
    let is_suspect = unsafe {
        let mut stack: libc::stack_t = std::mem::zeroed();
        libc::sigaltstack(std::ptr::null(), &mut stack) == 0
            && stack.ss_flags & libc::SS_ONSTACK == 0
            && (*info).si_code == libc::SI_TKILL
            && (*info).si_pid() == libc::getpid()
    };
    if is_suspect
        && let Some(lane) = LANE.get()
        && (rust_was_refused() || cpp_was_refused())
    {
        lane.set_abort_reason(AbortReason::OutOfMemory);
    }
}

/// Returns whether [`std::alloc::handle_alloc_error`] is among this thread's callers.
fn rust_was_refused() -> bool {
    /// About ten functions lie between it and the signal handler.
    const DEEPEST: usize = 64;

    #[repr(C)]
    struct Context([u8; 0]);

    // From the library that unwinds panics, whose interface is the same on all Linux platforms.
    unsafe extern "C" {
        fn _Unwind_Backtrace(
            visit: extern "C" fn(*mut Context, *mut c_void) -> libc::c_int,
            data: *mut c_void,
        ) -> libc::c_int;
        fn _Unwind_GetIP(context: *mut Context) -> usize;
        fn _Unwind_FindEnclosingFunction(address: *mut c_void) -> *mut c_void;
    }

    struct Walk {
        depth: usize,
        is_found: bool,
    }

    extern "C" fn visit(context: *mut Context, data: *mut c_void) -> libc::c_int {
        const CONTINUE: libc::c_int = 0;
        const STOP: libc::c_int = 4;
        // SAFETY: `data` is the walk that is passed below. `context` is valid during the call. The
        // address is one less than the return address, so it lies within the caller.
        unsafe {
            let walk = &mut *data.cast::<Walk>();
            walk.depth += 1;
            let address = _Unwind_GetIP(context).wrapping_sub(1);
            let function = _Unwind_FindEnclosingFunction(address as *mut c_void);
            let handler = std::alloc::handle_alloc_error as fn(std::alloc::Layout) -> !;
            walk.is_found = function.addr() == (handler as *const ()).addr();
            if walk.is_found || walk.depth == DEEPEST { STOP } else { CONTINUE }
        }
    }

    let mut walk = Walk { depth: 0, is_found: false };
    // SAFETY: the callback has the requested type.
    unsafe { _Unwind_Backtrace(visit, (&raw mut walk).cast()) };
    walk.is_found
}

/// Returns whether this thread aborts on a C++ exception `std::bad_alloc`.
fn cpp_was_refused() -> bool {
    let Some(Some(current)) = CURRENT_EXCEPTION.get() else { return false };
    let exception = current();
    // SAFETY: a type is never freed, and neither is its name.
    !exception.is_null()
        && unsafe { std::ffi::CStr::from_ptr((*exception).name) } == c"St9bad_alloc"
}
