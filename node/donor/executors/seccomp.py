"""The list of requests to the system's kernel that a job may not make.

The sandbox already takes away the network, other processes and all files; this filter closes doors that lead
around those walls, or that expose rarely used parts of the kernel to hostile code. It is a list of refusals,
not of permissions, because jobs are arbitrary programs; a refused call fails with EPERM, so a library that
only tries it goes on.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import Any

from node.errors import UserError

# Grouped by what they would open.
_REFUSED_CALLS = (
    # other processes, the sandbox's own first process included: tracing that one would freeze the sandbox
    ("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "process_madvise"),
    # queues that carry out calls without passing this filter
    ("io_uring_setup", "io_uring_enter", "io_uring_register"),
    # queues of which the whole machine has only so many
    ("io_setup",),
    # keys are not separated by user namespaces
    ("keyctl", "add_key", "request_key"),
    # large kernel interfaces with a history of holes
    ("bpf", "perf_event_open", "userfaultfd", "fanotify_init", "lookup_dcookie"),
    # file systems and name spaces
    ("mount", "umount2", "mount_setattr", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick"),
    ("open_tree", "pivot_root", "chroot", "setns", "unshare", "open_by_handle_at", "name_to_handle_at"),
    # the machine itself
    ("reboot", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
    ("swapon", "swapoff"),
    ("acct", "quotactl", "quotactl_fd", "syslog", "vhangup", "nfsservctl", "settimeofday", "clock_settime"),
    # switches off address randomisation, among others
    ("personality",),
)

# Memory that belongs to no process and no file system: only a control group sees it.
_HIDDEN_MEMORY_CALLS = ("memfd_create", "memfd_secret", "shmget")
_HUGE_PAGES = 0x00040000  # a flag of mmap: the machine's own reserve, which no job's memory limit covers
_CORE_LIMIT = 4

_NAMESPACE_FLAGS = (
    0x00020000,  # mounts
    0x02000000,  # control groups
    0x04000000,  # host name
    0x08000000,  # inter-process communication
    0x10000000,  # users
    0x20000000,  # process ids
    0x40000000,  # network
)
_INPUT_INJECTION = (0x5412, 0x541C)  # ioctl TIOCSTI and TIOCLINUX type into a terminal that is shared
_SOCKET_FAMILIES = (1, 2, 10, 16)  # unix, IPv4, IPv6, netlink: bound to the job's own empty network
_SOCKET_FAMILY_MAX = 16


@functools.cache
def build_filter(is_memory_counted: bool) -> bytes:
    """The filter as a Berkeley packet filter program, as `bwrap --seccomp` reads it; built once per process.

    `is_memory_counted` says whether a control group counts all of the job's memory.

    Calls of another machine word size (32-bit programs, x32) end the caller: their numbers differ, so no rule
    would fit them. Raises: UserError if the library is missing.
    """
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"the library libseccomp can't be loaded ({error}): install it (apt-get install libseccomp2)"
        ) from error
    refuse = pyseccomp.ERRNO(errno.EPERM)
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    refused = _REFUSED_CALLS if is_memory_counted else (*_REFUSED_CALLS, _HIDDEN_MEMORY_CALLS)
    for name in (name for group in refused for name in group):
        if _is_known(pyseccomp, name):
            rules.add_rule(refuse, name)
    for flag in _NAMESPACE_FLAGS:
        rules.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    # The flags of clone3 lie behind a pointer that no filter can follow. "No such call" makes libc use clone.
    if _is_known(pyseccomp, "clone3"):
        rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    for request in _INPUT_INJECTION:  # the kernel looks at the low 32 bits alone
        rules.add_rule(refuse, "ioctl", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, request))
    rules.add_rule(refuse, "mmap", pyseccomp.Arg(3, pyseccomp.MASKED_EQ, _HUGE_PAGES, _HUGE_PAGES))
    # The limit of one byte keeps a crash from the donor's crash handler, which runs outside of all walls. No other
    # value does so, not even zero; hence it stays as it is.
    of_cores = pyseccomp.MASKED_EQ, 0xFFFFFFFF, _CORE_LIMIT
    rules.add_rule(refuse, "setrlimit", pyseccomp.Arg(0, *of_cores))
    rules.add_rule(refuse, "prlimit64", pyseccomp.Arg(1, *of_cores), pyseccomp.Arg(2, pyseccomp.NE, 0))
    # Families such as vsock reach the hypervisor past every network namespace.
    for family in range(3, _SOCKET_FAMILY_MAX):
        if family not in _SOCKET_FAMILIES:
            rules.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
    rules.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.GT, _SOCKET_FAMILY_MAX))
    descriptor = os.memfd_create("filter")
    with os.fdopen(descriptor, "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _is_known(library: Any, name: str) -> bool:
    """Whether libseccomp knows a call: an older one lacks the newest, a newer processor some old ones."""
    return int(library.resolve_syscall(library.system_arch(), name)) >= 0
