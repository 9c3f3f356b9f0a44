//! Intel's multi-buffer library (`libIPSec_MB`), if the machine has it: its wide vectors seal a full packet in about
//! 60 % of AWS-LC's time.
//!
//! It is optional and loaded at run time. Its C interface consists of a structure of function pointers and a job
//! record. Neither has a stable layout, so only versions with a known layout are used (the offsets below are those of
//! the 1.3 header), and only after a self-test that compares sealing and opening with AWS-LC. Managers are not shared:
//! each thread that seals has its own. Short packets are left to AWS-LC, which is as fast for them.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

use subtle::ConstantTimeEq;
use wyrmhole_core::aead::{Aead, AwsLc, TransportCipher, nonce};
use wyrmhole_core::messages::TAG_SIZE;
use zeroize::Zeroizing;

const NAME: &CStr = c"libIPSec_MB.so.1";
/// Versions 1.3.x in the format of `imb_get_version`: one byte per part.
const KNOWN_VERSIONS: std::ops::RangeInclusive<u32> = 0x1_0300..=0x1_03FF;
/// The shortest text for this library. Below this length, AWS-LC is at least as fast.
const LEAST: usize = 256;

// Offsets in IMB_MGR.
const GET_NEXT_JOB: usize = 64;
const SUBMIT_JOB_NOCHECK: usize = 80;

// Values of the enumerations.
const CIPHER_CHACHA20_POLY1305: c_int = 19;
const AUTH_CHACHA20_POLY1305: c_int = 29;
const ENCRYPT: c_int = 1;
const DECRYPT: c_int = 2;
const CIPHER_HASH: c_int = 1;
const HASH_CIPHER: c_int = 2;
const COMPLETED: c_int = 3;

/// The used part of `IMB_JOB`, padded to its full size.
#[repr(C)]
struct Job {
    enc_keys: *const c_void,
    dec_keys: *const c_void,
    key_length: u64,
    src: *const u8,
    dst: *mut u8,
    cipher_offset: u64,
    cipher_length: u64,
    hash_offset: u64,
    hash_length: u64,
    iv: *const u8,
    iv_length: u64,
    tag: *mut u8,
    tag_length: u64,
    aad: *const u8,
    aad_length: u64,
    context: *mut c_void,
    status: c_int,
    cipher_mode: c_int,
    direction: c_int,
    hash: c_int,
    order: c_int,
    rest: [u64; 6],
}

const _: () = assert!(size_of::<Job>() == 200);

type AllocManager = unsafe extern "C" fn(u64) -> *mut c_void;
type FreeManager = unsafe extern "C" fn(*mut c_void);
type InitManager = unsafe extern "C" fn(*mut c_void, *mut c_int);
type GetVersion = unsafe extern "C" fn() -> u32;
type JobFunction = unsafe extern "C" fn(*mut c_void) -> *mut Job;

/// The functions that are called by name.
#[derive(Clone, Copy)]
struct Library {
    alloc: AllocManager,
    free: FreeManager,
    init: InitManager,
}

/// The library, loaded once and never unloaded.
static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();

fn library() -> Result<Library, String> {
    LIBRARY.get_or_init(open).clone()
}

fn open() -> Result<Library, String> {
    // SAFETY: the name is a C string, and the library's initialisers are trusted, like all installed software.
    let handle = unsafe { libc::dlopen(NAME.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err("libIPSec_MB is not installed".to_owned());
    }
    let get_version = symbol(handle, c"imb_get_version")?;
    // SAFETY: the function's type is that of the header, in every version.
    let version = unsafe { std::mem::transmute::<*mut c_void, GetVersion>(get_version)() };
    if !KNOWN_VERSIONS.contains(&version) {
        let (major, minor) = (version >> 16, version >> 8 & 0xFF);
        return Err(format!("libIPSec_MB {major}.{minor} has an unknown layout: install version 1.3"));
    }
    // SAFETY: the types are those of the header, whose version was just checked.
    unsafe {
        Ok(Library {
            alloc: std::mem::transmute::<*mut c_void, AllocManager>(symbol(handle, c"alloc_mb_mgr")?),
            free: std::mem::transmute::<*mut c_void, FreeManager>(symbol(handle, c"free_mb_mgr")?),
            init: std::mem::transmute::<*mut c_void, InitManager>(symbol(handle, c"init_mb_mgr_auto")?),
        })
    }
}

fn symbol(handle: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: the library is open, and the name is a C string.
    let found = unsafe { libc::dlsym(handle, name.as_ptr().cast::<c_char>()) };
    if found.is_null() { Err(format!("libIPSec_MB lacks {}", name.to_string_lossy())) } else { Ok(found) }
}

/// The manager of one thread.
struct Manager {
    library: Library,
    manager: *mut c_void,
    get_next_job: JobFunction,
    submit_job: JobFunction,
}

impl Manager {
    fn new() -> Option<Self> {
        let library = library().ok()?;
        // SAFETY: called according to the header; the pointers are at the offsets of the version that was checked.
        unsafe {
            let manager = (library.alloc)(0);
            if manager.is_null() {
                return None;
            }
            (library.init)(manager, ptr::null_mut());
            let function = |offset| manager.cast::<u8>().add(offset).cast::<Option<JobFunction>>().read();
            let (Some(get_next_job), Some(submit_job)) = (function(GET_NEXT_JOB), function(SUBMIT_JOB_NOCHECK)) else {
                (library.free)(manager);
                return None;
            };
            Some(Self { library, manager, get_next_job, submit_job })
        }
    }

    /// Seal or open `text` in place. Returns false if the library did not complete the job at once, as it always does
    /// for this cipher.
    fn run(&self, key: &[u8; 32], counter: u64, text: &mut [u8], direction: c_int, tag: &mut [u8; TAG_SIZE]) -> bool {
        let nonce = nonce(counter);
        // SAFETY: the job belongs to this thread's manager. Key, nonce, text and tag are borrowed until the job is
        // completed, which is checked, and their lengths are given.
        unsafe {
            let job = (self.get_next_job)(self.manager);
            *job = Job {
                enc_keys: key.as_ptr().cast::<c_void>(),
                dec_keys: key.as_ptr().cast::<c_void>(),
                key_length: 32,
                src: text.as_ptr(),
                dst: text.as_mut_ptr(),
                cipher_offset: 0,
                cipher_length: text.len() as u64,
                hash_offset: 0,
                hash_length: text.len() as u64,
                iv: nonce.as_ptr(),
                iv_length: 12,
                tag: tag.as_mut_ptr(),
                tag_length: TAG_SIZE as u64,
                aad: ptr::null(),
                aad_length: 0,
                context: ptr::null_mut(),
                status: 0,
                cipher_mode: CIPHER_CHACHA20_POLY1305,
                direction,
                hash: AUTH_CHACHA20_POLY1305,
                order: if direction == ENCRYPT { CIPHER_HASH } else { HASH_CIPHER },
                rest: [0; 6],
            };
            let done = (self.submit_job)(self.manager);
            !done.is_null() && (*done).status == COMPLETED
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // SAFETY: the manager came from `alloc`, and no other code uses it.
        unsafe { (self.library.free)(self.manager) };
    }
}

thread_local! {
    static MANAGER: Option<Manager> = Manager::new();
    /// The manager failed once and is not used again.
    static GAVE_UP: Cell<bool> = const { Cell::new(false) };
}

/// The backend; `load` creates it.
pub struct Vector(());

/// Load the library, and compare it with AWS-LC.
///
/// # Errors
/// The reason why it cannot be used, in one sentence.
pub fn load() -> Result<Vector, String> {
    library()?;
    if !MANAGER.with(Option::is_some) {
        return Err("libIPSec_MB has no manager for this processor".to_owned());
    }
    self_test()?;
    Ok(Vector(()))
}

struct VectorKey {
    raw: Zeroizing<[u8; 32]>,
    fallback: Box<dyn TransportCipher>,
}

impl Aead for Vector {
    fn name(&self) -> &'static str {
        "libIPSec_MB"
    }

    fn key(&self, key: &[u8; 32]) -> Box<dyn TransportCipher> {
        Box::new(VectorKey { raw: Zeroizing::new(*key), fallback: AwsLc.key(key) })
    }
}

/// Call a function with this thread's manager. `None` if AWS-LC must do the work.
fn with_manager<T>(length: usize, act: impl FnOnce(&Manager) -> Option<T>) -> Option<T> {
    if length < LEAST || GAVE_UP.get() {
        return None;
    }
    let done = MANAGER.with(|manager| manager.as_ref().and_then(act));
    GAVE_UP.set(done.is_none());
    done
}

impl TransportCipher for VectorKey {
    fn seal(&self, counter: u64, text: &mut [u8]) {
        let (plain, place) = text.split_at_mut(text.len() - TAG_SIZE);
        let (mut tag, length) = ([0; TAG_SIZE], plain.len());
        let seal = |manager: &Manager| manager.run(&self.raw, counter, plain, ENCRYPT, &mut tag).then_some(());
        if with_manager(length, seal).is_some() {
            place.copy_from_slice(&tag);
        } else {
            self.fallback.seal(counter, text);
        }
    }

    fn open(&self, counter: u64, text: &mut [u8]) -> bool {
        let (sealed, given) = text.split_at_mut(text.len() - TAG_SIZE);
        let (mut tag, length) = ([0; TAG_SIZE], sealed.len());
        let open = |manager: &Manager| manager.run(&self.raw, counter, sealed, DECRYPT, &mut tag).then_some(());
        match with_manager(length, open) {
            Some(()) => tag.ct_eq(given).into(),
            None => self.fallback.open(counter, text),
        }
    }
}

/// Compare the library with AWS-LC for lengths around all boundaries of blocks and vectors, up to the longest packet of
/// common MTUs, and for one super-packet.
fn self_test() -> Result<(), String> {
    let key = std::array::from_fn(|at| at as u8 ^ 0x5A);
    let (vector, fallback) = (Vector(()).key(&key), AwsLc.key(&key));
    let lengths = (LEAST..2100).step_by(7).chain([1280, 1420, 1440, 8920, 65_535]);
    for length in lengths {
        let plain: Vec<u8> = (0..length + TAG_SIZE).map(|at| (at * 31) as u8).collect();
        let (mut ours, mut theirs) = (plain.clone(), plain.clone());
        let counter = length as u64 * 0x1_0000_0001;
        vector.seal(counter, &mut ours);
        fallback.seal(counter, &mut theirs);
        let opens = ours == theirs && vector.open(counter, &mut theirs) && theirs[..length] == plain[..length];
        ours[length / 2] ^= 1;
        if GAVE_UP.get() || !opens || vector.open(counter, &mut ours) {
            return Err(format!("libIPSec_MB does not agree with AWS-LC on {length} bytes"));
        }
    }
    Ok(())
}
