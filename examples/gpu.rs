//! One GPU per worker, chosen by the worker's slot. CUDA's driver library is opened in the workers only: a
//! process that has initialized CUDA can't be copied by `fork`, and the parent needs no device.
//!
//! The library is opened while the program runs (`dlopen`), so the program builds and runs anywhere. A
//! replacement of a lost worker gets its slot, and so its GPU. Setting `CUDA_VISIBLE_DEVICES` by
//! `PoolBuilder::env_per_worker` does the same for a program that always uses device 0.
//!
//! On a machine without a GPU, the reason is on standard error:
//!
//! ```text
//! $ cargo run --example gpu
//! no worker has a GPU
//! ```
//!
//! On a machine with two:
//!
//! ```text
//! $ cargo run --example gpu
//! worker 0 has GPU 0 of 2: NVIDIA H100 80GB HBM3
//! worker 1 has GPU 1 of 2: NVIDIA H100 80GB HBM3
//! ```

use std::ffi::{CStr, c_char, c_int, c_uint};

use libloading::{Library, Symbol};
use procpool::{Pool, with_state};

/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;

/// What a worker keeps: its device, or why it has none.
type Device = Result<Gpu, String>;

struct Gpu {
    number: c_int,
    count: c_int,
    name: String,
    /// Keeps the library loaded.
    _cuda: Library,
}

/// The initializer: opens the library, and chooses the device of this worker's slot.
fn open((): ()) -> Device {
    let slot = procpool::worker().map_or(0, |worker| worker.slot);
    // SAFETY: the constructors of NVIDIA's driver library need nothing of the program.
    let cuda = unsafe { Library::new("libcuda.so.1") }
        .map_err(|_| "the library libcuda.so.1 is not installed")?;
    let check = |what: &str, code: c_int| match code {
        0 => Ok(()),
        NO_DEVICE => Err("CUDA finds no device".to_owned()),
        code => Err(format!("{what} failed with CUDA's error {code}")),
    };
    // SAFETY: the signatures are those of CUDA's header, `cuda.h`. Each call comes after `cuInit`, and
    // each pointer is valid during its call.
    let (number, count, name) = unsafe {
        let init: Symbol<'_, unsafe extern "C" fn(c_uint) -> c_int> = symbol(&cuda, c"cuInit")?;
        let get_count: Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int> =
            symbol(&cuda, c"cuDeviceGetCount")?;
        let get: Symbol<'_, unsafe extern "C" fn(*mut c_int, c_int) -> c_int> =
            symbol(&cuda, c"cuDeviceGet")?;
        let get_name: Symbol<'_, unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int> =
            symbol(&cuda, c"cuDeviceGetName")?;
        check("cuInit", init(0))?;
        let (mut count, mut device, mut name) = (0, 0, [0; 100]);
        check("cuDeviceGetCount", get_count(&raw mut count))?;
        if count < 1 {
            check("cuDeviceGetCount", NO_DEVICE)?;
        }
        let number = (slot % count as usize) as c_int;
        check("cuDeviceGet", get(&raw mut device, number))?;
        check("cuDeviceGetName", get_name(name.as_mut_ptr(), name.len() as c_int, device))?;
        name[name.len() - 1] = 0;
        (number, count, CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned())
    };
    Ok(Gpu { number, count, name, _cuda: cuda })
}

/// # Safety
///
/// `F` must be the type of the function in the library.
unsafe fn symbol<'a, F>(cuda: &'a Library, name: &CStr) -> Result<Symbol<'a, F>, String> {
    // SAFETY: the caller knows the type.
    unsafe { cuda.get(name.to_bytes_with_nul()) }.map_err(|error| error.to_string())
}

/// The task: a real program computes something on the device. Returns the worker's slot and its device.
fn describe((): ()) -> (usize, Result<String, String>) {
    let slot = procpool::worker().map_or(0, |worker| worker.slot);
    let device = with_state(|device: &mut Device| match device {
        Ok(gpu) => Ok(format!("GPU {} of {}: {}", gpu.number, gpu.count, gpu.name)),
        Err(reason) => Err(reason.clone()),
    });
    (slot, device.unwrap_or_else(|| Err("the worker has no state".to_owned())))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let pool = Pool::builder().workers(2).initializer(open, ()).build()?;
    let mut found = Vec::new();
    for described in pool.broadcast(describe, ()) {
        found.push(described?);
    }
    if let [(_, Err(reason)), ..] = found.as_slice() {
        eprintln!("{reason}");
        println!("no worker has a GPU");
        return Ok(());
    }
    for (slot, device) in found {
        match device {
            Ok(device) => println!("worker {slot} has {device}"),
            Err(reason) => println!("worker {slot} has no GPU: {reason}"),
        }
    }
    Ok(())
}
