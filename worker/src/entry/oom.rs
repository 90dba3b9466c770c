//! Records in the lane that an abort follows a refused allocation, so that the parent can tell an
//! out-of-memory abort from other aborts.
//!
//! errno is no evidence: it stays ENOMEM long after a refusal that the task has handled, and printing may
//! change it. The aborting thread's stack is: it holds Rust's allocation error handler. In C++, the
//! exception in flight is: it is `std::bad_alloc`. A C program's `abort` after a failed `malloc` looks
//! like any other abort and is not recorded.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::OnceLock;

use crate::run::fork_guard;
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

/// What the handler needs to know of the program.
static PROGRAM: OnceLock<Program> = OnceLock::new();

struct Program {
    /// The addresses of the program itself and of the C library, which may call `abort` with a lock of the heap held.
    own: [Range<usize>; 2],
    /// The C library's `abort`.
    abort: usize,
    /// The function of the C++ library, if there is one from the start.
    current_exception: Option<CurrentException>,
}

impl Program {
    fn find() -> Self {
        // SAFETY: a function of the C library.
        let abort = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"abort".as_ptr()) }.addr();
        let mut modules: Vec<Range<usize>> = Vec::new();
        // SAFETY: the callback has the requested type, and gets a pointer to the list.
        unsafe { libc::dl_iterate_phdr(Some(note_module), (&raw mut modules).cast()) };
        let of_c = modules.iter().find(|module| module.contains(&abort)).cloned();
        let own = [modules.first().cloned().unwrap_or_default(), of_c.unwrap_or_default()];
        Self { own, abort, current_exception: find_current_exception() }
    }
}

/// Appends the addresses of a module to a list. The first is the program.
unsafe extern "C" fn note_module(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    list: *mut c_void,
) -> libc::c_int {
    // SAFETY: `info` is valid during the call, and so are its headers. `list` is what `find` passes.
    let (info, list) = unsafe { (&*info, &mut *list.cast::<Vec<Range<usize>>>()) };
    // SAFETY: as above.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    let ends = loaded.map(|header| {
        let start = (info.dlpi_addr + header.p_vaddr) as usize;
        start..start + header.p_memsz as usize
    });
    list.extend(ends.reduce(|one, other| one.start.min(other.start)..one.end.max(other.end)));
    0
}

/// Looks up the function of the C++ library. Allocates memory where there is none.
fn find_current_exception() -> Option<CurrentException> {
    // SAFETY: where there is a C++ library, this is its function, of the ABI's type.
    unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"__cxa_current_exception_type".as_ptr());
        let is_there = !symbol.is_null();
        is_there.then(|| std::mem::transmute::<*mut c_void, CurrentException>(symbol))
    }
}

/// Looks up what the handler needs to know, unless the template did so before the fork.
pub(super) fn prepare() {
    PROGRAM.get_or_init(Program::find);
}

/// Installs the SIGABRT handler that records [`AbortReason::OutOfMemory`] in `lane`.
pub(super) fn install_handler(lane: &'static Words) {
    let _ = LANE.set(lane);
    prepare();
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
/// called `abort`, and not on the small stack that reports a stack overflow. It allocates nothing where the lock of
/// the heap may be held: the C library calls `abort` when it finds the heap damaged.
extern "C" fn on_abort(_signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // A copy that a task has forked has the worker's lane, too.
    // SAFETY: plain system calls that write to a local. The kernel passes a valid `info` to a handler
    // that asks for it, with a PID if a process has sent the signal.
    let is_suspect = !fork_guard::is_forked()
        && unsafe {
            let mut stack: libc::stack_t = std::mem::zeroed();
            libc::sigaltstack(std::ptr::null(), &mut stack) == 0
                && stack.ss_flags & libc::SS_ONSTACK == 0
                && (*info).si_code == libc::SI_TKILL
                && (*info).si_pid() == libc::getpid()
        };
    if is_suspect && let (Some(lane), Some(program)) = (LANE.get(), PROGRAM.get()) {
        let walk = walk(program);
        if walk.is_found || cpp_was_refused(program, walk.caller) {
            lane.set_abort_reason(AbortReason::OutOfMemory);
        }
    }
}

/// What this thread's callers are.
struct Walk {
    depth: usize,
    /// The address of `abort`, and whether the walk is behind it.
    abort: usize,
    is_behind_abort: bool,
    /// What has called it; 0 if that is not known.
    caller: usize,
    /// Whether [`std::alloc::handle_alloc_error`] is among them.
    is_found: bool,
}

/// Walks this thread's stack.
fn walk(program: &Program) -> Walk {
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

    extern "C" fn visit(context: *mut Context, data: *mut c_void) -> libc::c_int {
        const CONTINUE: libc::c_int = 0;
        const STOP: libc::c_int = 4;
        // SAFETY: `data` is the walk that is passed below. `context` is valid during the call. The
        // address is one less than the return address, so it lies within the caller.
        unsafe {
            let walk = &mut *data.cast::<Walk>();
            walk.depth += 1;
            let address = _Unwind_GetIP(context).wrapping_sub(1);
            let function = _Unwind_FindEnclosingFunction(address as *mut c_void).addr();
            if walk.is_behind_abort && walk.caller == 0 {
                walk.caller = address;
            }
            walk.is_behind_abort |= function == walk.abort;
            let handler = std::alloc::handle_alloc_error as fn(std::alloc::Layout) -> !;
            walk.is_found = function == (handler as *const ()).addr();
            if walk.is_found || walk.depth == DEEPEST { STOP } else { CONTINUE }
        }
    }

    let abort = program.abort;
    let mut walk = Walk { depth: 0, abort, is_behind_abort: false, caller: 0, is_found: false };
    // SAFETY: the callback has the requested type.
    unsafe { _Unwind_Backtrace(visit, (&raw mut walk).cast()) };
    walk
}

/// Returns whether this thread aborts on a C++ exception `std::bad_alloc`. A C++ library that was loaded later is looked
/// for only if it may be what has called `abort`.
fn cpp_was_refused(program: &Program, caller: usize) -> bool {
    let is_library = caller != 0 && !program.own.iter().any(|module| module.contains(&caller));
    let late = || if is_library { find_current_exception() } else { None };
    let Some(current) = program.current_exception.or_else(late) else { return false };
    let exception = current();
    // SAFETY: a type is never freed, and neither is its name.
    !exception.is_null()
        && unsafe { std::ffi::CStr::from_ptr((*exception).name) } == c"St9bad_alloc"
}
