//! A plugin with bugs, for examples/plugin_host.rs: turns text into capitals.

/// Writes the text in capitals to `output`, as far as it fits. Returns its length.
///
/// # Safety
///
/// `input` and `output` are valid for their lengths, and do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn plugin_run(
    input: *const u8,
    len: usize,
    output: *mut u8,
    capacity: usize,
) -> usize {
    // SAFETY: as the caller promises.
    let (input, output) = unsafe {
        (std::slice::from_raw_parts(input, len), std::slice::from_raw_parts_mut(output, capacity))
    };
    match input {
        // SAFETY: none. This is the bug.
        b"crash" => unsafe { std::ptr::null_mut::<u8>().write_volatile(1) },
        b"hang" => loop {
            std::thread::park();
        },
        // Without `black_box`, a release build removes the allocation.
        b"leak" => loop {
            std::mem::forget(std::hint::black_box(vec![1_u8; 8 << 20]));
        },
        _ => {}
    }
    for (to, from) in output.iter_mut().zip(input) {
        *to = from.to_ascii_uppercase();
    }
    len.min(capacity)
}
