//! The system calls that serving needs; any other ends the process.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// Calls without conditions, by what they are for.
const SERVING: &[&[libc::c_long]] = &[
    // the loop, and waiting for device processes
    &[
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_ppoll,
        libc::SYS_futex,
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_clock_gettime,
        libc::SYS_sched_yield,
    ],
    // sockets that are open, and what comes through them
    &[
        libc::SYS_accept4,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_shutdown,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
    ],
    // descriptors that we hold: eventfds, guest memory, the log
    &[
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_dup,
        libc::SYS_fcntl,
        libc::SYS_fstat,
        libc::SYS_lseek,
        libc::SYS_eventfd2,
    ],
    // the memory shared with a device process that connects
    &[libc::SYS_memfd_create, libc::SYS_ftruncate],
    // a stuck device process, and our own identity beside it
    &[libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal, libc::SYS_getpid, libc::SYS_gettid],
    // the allocator
    &[libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_getrandom],
    // the sockets' files at the end, if they are still ours; signals; the end
    &[
        libc::SYS_statx,
        // what musl calls where glibc calls statx
        libc::SYS_newfstatat,
        libc::SYS_unlinkat,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_tgkill,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ],
];

/// Calls of this architecture's own.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] =
    &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_unlink, libc::SYS_pipe2];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// `mmap` and `mprotect` take the protection as their third argument.
const PROTECTION: u8 = 2;

/// `ioctl` takes the request as its second argument, of which the kernel looks at 32 bits.
const REQUEST: u8 = 1;

/// Requests of `ioctl`, FIONREAD and FIONBIO: how many bytes have come, and whether to wait for more
/// (asm-generic/ioctls.h; libc has them in a type that differs from one C library to another).
const REQUESTS: [u32; 2] = [0x541b, 0x5421];

/// Puts the allow-list in force, with what maps memory for VFIO devices if there are any, for this thread and
/// those it starts.
pub(super) fn allow_only_serving(vfio: bool) -> Result<(), String> {
    let program = program(vfio).map_err(|error| error.to_string())?;
    apply_filter(&program).map_err(|error| error.to_string())
}

fn program(vfio: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<libc::c_long, Vec<SeccompRule>> = BTreeMap::new();
    for call in SERVING.iter().copied().flatten().chain(OLDER) {
        rules.insert(*call, Vec::new());
    }
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![not_executable()?]);
    }
    let host = viommu_backend::vfio::requests().filter(|_| vfio);
    let requests = REQUESTS.into_iter().chain(host);
    let requests: Result<_, _> = requests.map(is_request).collect();
    rules.insert(libc::SYS_ioctl, requests?);
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?.try_into()
}

/// Memory that holds data.
fn not_executable() -> Result<SeccompRule, seccompiler::BackendError> {
    let exec = u64::from(libc::PROT_EXEC.cast_unsigned());
    let masked = SeccompCmpOp::MaskedEq(exec);
    SeccompRule::new(vec![SeccompCondition::new(PROTECTION, SeccompCmpArgLen::Qword, masked, 0)?])
}

/// One request of `ioctl`.
fn is_request(request: u32) -> Result<SeccompRule, seccompiler::BackendError> {
    let (same, request) = (SeccompCmpOp::Eq, u64::from(request));
    SeccompRule::new(vec![SeccompCondition::new(REQUEST, SeccompCmpArgLen::Dword, same, request)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_opens_or_executes_is_on_the_list() {
        let allowed: Vec<_> = SERVING.iter().copied().flatten().chain(OLDER).collect();
        for call in [
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
        ] {
            assert!(!allowed.contains(&&call), "{call}");
        }
    }

    #[test]
    fn the_list_is_a_program_that_the_kernel_can_take() {
        for vfio in [false, true] {
            assert!(!program(vfio).unwrap().is_empty());
        }
    }
}
