"""System calls that programs in the sandbox are denied, as a filter for the kernel (seccomp, classic BPF).

Denied is memory that no process's size shows and no limit of the sandbox counts (files in memory, System V and POSIX
queues and segments, shared anonymous maps, enlarged pipes, rings), what only administration needs (mounts, namespaces,
keys, modules, tracing), and sockets that are not of this network namespace (`AF_VSOCK` reaches the host of a virtual
machine). A denied call fails with ENOSYS or EPERM, as on a kernel without it.

The filter is for x86-64 and 64-bit ARM; on other machines there is none, and only the sandbox's limits hold.
"""

import errno
import functools
import platform
import struct

# Numbers by name: x86-64, 64-bit ARM. From 424 on all machines have the same.
_DENIED = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semtimedop": (220, 192),
    "semop": (65, 193),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "mq_open": (240, 180),
    "vmsplice": (278, 75),
    "io_setup": (206, 0),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "syslog": (103, 116),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "clone3": (435, 435),  # its flags are behind a pointer; C libraries go on with clone
}
_CLONE, _MMAP, _FCNTL, _SOCKET = (56, 220), (9, 222), (72, 25), (41, 198)
_NAMESPACES = 0x7E020000  # CLONE_NEW*: mount, control group, host name, IPC, user, process and network
_SHARED_ANONYMOUS = 0x21  # MAP_SHARED | MAP_ANONYMOUS
_SET_PIPE_SIZE = 1031
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


@functools.cache
def filter_of_machine(machine: str = platform.machine()) -> bytes:
    """The filter, an array of `struct sock_filter`, for a kind of machine; empty where there is none."""
    if machine not in _MACHINES:
        return b""
    architecture, column = _MACHINES[machine]
    code = [_step(_LOAD, _MACHINE), _step(_EQUAL, architecture, 1, 0), _step(_RETURN, _KILL), _step(_LOAD, _NUMBER)]
    if machine == "x86_64":  # the same calls under other numbers
        code += [_step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _ERROR | errno.ENOSYS)]
    for numbers in _DENIED.values():
        code += [_step(_EQUAL, numbers[column], 0, 1), _step(_RETURN, _ERROR | errno.ENOSYS)]
    code += _on(_CLONE[column], 0, [_step(_ANY_BIT, _NAMESPACES, 0, 1), _step(_RETURN, _ERROR | errno.EPERM)])
    shared = [_step(_AND, _SHARED_ANONYMOUS), _step(_EQUAL, _SHARED_ANONYMOUS, 0, 1)]
    code += _on(_MMAP[column], 3, [*shared, _step(_RETURN, _ERROR | errno.EPERM)])
    code += _on(_FCNTL[column], 1, [_step(_EQUAL, _SET_PIPE_SIZE, 0, 1), _step(_RETURN, _ERROR | errno.EPERM)])
    families = [_step(_EQUAL, family, len(_FAMILIES) - place, 0) for place, family in enumerate(_FAMILIES)]
    code += _on(_SOCKET[column], 0, [*families, _step(_RETURN, _ERROR | errno.EAFNOSUPPORT)])
    return b"".join([*code, _step(_RETURN, _ALLOW)])


def _on(number: int, argument: int, steps: list[bytes]) -> list[bytes]:
    """Steps for one call, with the low half of one of its arguments loaded; allows the call at their end."""
    steps = [_step(_LOAD, _ARGUMENTS + 8 * argument), *steps, _step(_RETURN, _ALLOW)]
    return [_step(_EQUAL, number, 0, len(steps)), *steps]


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)
