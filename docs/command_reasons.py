"""Reasons of commands and of the operating system, and what a row of docs/troubleshooting.md is."""

from dataclasses import dataclass
from typing import Final

from podsvid.doctor import kinds


@dataclass(frozen=True, slots=True)
class Row:
    """`means` is a sentence, or several; so is `to_do`, for whoever has read no other page."""

    reason: str
    means: str
    to_do: str


BUG: Final = "please report it, with the line of the log"
# An agent shows a status of gRPC's where an answer has no reason of the signer's.
BETWEEN: Final = (
    "after `IDENTITY_DENIED`, `IDENTITY_UNAVAILABLE` or `AUTHORITY_REFUSED` it is what something before the signer "
    "answered (a mesh, a proxy, a load balancer), unless the signer's log has it: let agents reach the signer directly"
)
_SYSTEM = (
    "look at the file, directory or address that the text names: does it exist, is it on a file system that is well "
    "(`dmesg`), and is there such a limit as open files or processes?"
)
OF_CHECK: Final = (
    Row("NOT_ROOT", "the agent is not root", "run it as root: it mounts, and gives files to pods' users"),
    Row(
        "CAPABILITIES_MISSING",
        "root has not all that it takes",
        "run the agent's container privileged, as the chart does",
    ),
    Row("USER_UNUSABLE", "this user namespace has no such `socket_user`", "choose a uid that it has"),
    Row("USER_TAKEN", "somebody has that `socket_user`", "choose a uid that nothing on the node has"),
    Row(
        "NO_KUBELET",
        "no kubelet has that root directory",
        "set `kubelet_root` (the chart's `kubelet.root`) to kubelet's `--root-dir`",
    ),
    Row("KEPT_ON_DISK", "a reboot would not empty `run_dir`", "choose a directory on a tmpfs, as below `/run`"),
    Row("NOT_KEPT", "a reboot would empty `state_dir`, which has the authority", "choose a directory on a disk"),
    Row(
        "MEMORY_LIMIT",
        "the settings may need more memory than the limit",
        "raise the limit, or lower what the text names",
    ),
    Row(
        "FILES_LIMIT",
        "the settings may need more open files than the limit",
        "raise the limit (`LimitNOFILE=`), or lower `volumes`",
    ),
    Row("ADDRESS_IN_USE", "another program has that port", "choose another one, or stop it"),
    Row("ADDRESS_NOT_HERE", "this host has no such address", "give one that it has, or `[::]`"),
    Row("ADDRESS_UNUSABLE", "nothing can listen there", "choose another address"),
    Row(
        "FILE_UNUSABLE",
        "the file is not what belongs there, or cannot be read",
        "the text names the setting and the file",
    ),
    Row("NO_ANSWER", "a file or directory did not answer in time", "is it on a file system that hangs, or a pipe?"),
)
OF_SYSTEM: Final = (
    Row(
        "PERMISSION_DENIED",
        "this user may not open, write or listen there",
        f"run it as who may, or change the mode; {BETWEEN}",
    ),
    Row(
        "NOT_FOUND",
        "there is no such file, or no such object of the API server",
        f"correct the path or the name; {BETWEEN}",
    ),
    Row("NO_SPACE", "the file system is full, or a quota is", "free space and inodes (`df`, `df -i`)"),
    Row("READ_ONLY", "the file system is read-only", "choose another directory"),
    Row(
        "IN_THE_WAY",
        "something is there already that is not of the kind that belongs there",
        "move it, or name another directory; `migrate` writes into an empty one",
    ),
    Row("SYSTEM_ERROR", "the operating system refused it; its words are in the text", _SYSTEM),
    Row("WRONG_USAGE", "the command line means nothing", "`podsvid COMMAND --help`"),
    Row(
        "INVALID_SETTING",
        "a setting is unknown, unusable, or contradicts another; each line is one",
        "the line names the flag, the variable or the file's line, and what is accepted",
    ),
    Row(
        "COMMAND_FAILED",
        "what the command is about is not there, or is not so that it can be asked: the pod has ended or has no node "
        "or volume, no agent or signer runs there, a file of CAs is none",
        "look at the pod, node or file that the text names; `--podsvid-namespace`, where podsvid has another namespace",
    ),
    Row(
        "TIMED_OUT",
        "what was waited for did not come in time",
        "`--timeout` gives it longer; the text names who is silent",
    ),
    Row("OUTPUT_FAILED", "the standard output takes no more", "is the disk full that it is sent to?"),
)
# What the doctor says is its own; what others say as well has a row with theirs.
OF_DOCTOR: Final = tuple(Row(each.reason, each.means, each.to_do) for each in kinds.OWN)
OF_COMMANDS: Final = (
    Row("NO_SOCKET", "nothing is at that path", "is the daemon running, and on this host? `--socket` says where"),
    Row("NOT_A_SOCKET", "something else is at that path, or the path is too long", "give the socket's path"),
    Row("NOBODY_LISTENS", "whoever made the socket has gone", "look at the daemon; it makes the socket anew"),
    Row("SOCKET_DENIED", "this user may not open it", "run it as root on the node, or in the pod of the daemon"),
    Row("WRONG_SOCKET", "somebody else listens there", "the text says who, and which socket is wanted"),
    Row(
        "NODE_COMMAND_FAILED",
        "the agent has no volume of that pod, could not renew it, or its connection ended",
        "is that the agent of the pod's node (`kubectl get pod POD -o wide`)? What could not be renewed has its reason "
        "in the text",
    ),
    Row(
        "AUTHORITY_COMMAND_FAILED",
        "the signer refuses that step, has no authority yet, or its connection ended",
        "go on with the reason in the text; `podsvid authority show` says where the authorities are and what they wait "
        "for, and whether a step whose answer was lost was taken. A rotation whose pod went away goes on: do not ask "
        "for another",
    ),
    Row(
        "NO_DOCUMENT",
        "the signer has no such document",
        "verifiers by OpenID Connect need `jwt_svids` and `jwt_issuer` of the signer",
    ),
    Row(
        "OLDER_DOCUMENT",
        "the file that is there is newer than what the signer said",
        "ask again: another replica may be ahead; remove the file where it is of something else",
    ),
    Row(
        "WORKLOAD_API_UNREACHABLE",
        "no Workload API answers, or it says to come back later",
        "is the volume mounted, and does `SPIFFE_ENDPOINT_SOCKET` have its path?",
    ),
    Row(
        "INVALID_WORKLOAD_API_ADDRESS",
        "that is no address of a Workload API",
        "`unix:///spiffe/socket`, an absolute path, or `tcp://127.0.0.1:PORT`",
    ),
    Row("NO_IDENTITY", "the server has no identity for this caller", "`podsvid explain NAMESPACE/POD` says why"),
    Row(
        "WORKLOAD_API_REFUSED",
        "the server takes the request for wrong, or the token that it was to validate for invalid (INVALID_ARGUMENT); "
        "the text is the server's",
        "correct the audience, the SPIFFE ID or the token: asking the same again does not help",
    ),
    Row("WORKLOAD_API_NOT_SERVED", "the server has no such method", "is it the Workload API's socket, and new enough?"),
    Row(
        "WORKLOAD_API_ANSWER_UNUSABLE",
        "the server's answer breaks the specification, or has ended",
        "compare the clocks of both; else the server is to be mended",
    ),
    Row(
        "WORKLOAD_API_ERROR",
        "the server ended the call with a status that the Workload API has no meaning for, such as INTERNAL",
        "look at the server's log: of podsvid it is the agent's on that node; another socket than podsvid's may "
        "be mounted there",
    ),
    Row("TOKEN_INVALID", "the token is not valid", "the text says why: audience, time, key or form"),
    Row("COMMAND_NOT_STARTED", "the command of `--exec` cannot be started", "is its path right, and may it be run?"),
    Row(
        "FILE_NOT_OURS", "a file is in the way that `podsvid api` did not make", "move it, or choose another directory"
    ),
    Row("DIRECTORY_IN_USE", "another process writes there", "one `podsvid api --write` for each directory"),
    Row("UNUSABLE_DOCUMENT", "a file for `podsvid migrate` is not what it should be", "the text has its name and line"),
    Row(
        "DOCUMENT_UNREADABLE",
        "what verifiers read cannot be read, or is no discovery document or JWKS",
        "look at the web server or the listener that serves it, and at what is between",
    ),
    Row("ISSUER_DIFFERS", "the discovery document names another issuer", "publish the signer's newest documents"),
    Row(
        "JWKS_URI_DIFFERS",
        "the discovery document names another address of keys",
        "publish the signer's newest documents",
    ),
    Row("KEPT_TOO_LONG", "caches may keep the keys too long", "serve them with the `Cache-Control` that the text has"),
    Row(
        "KEY_ABANDONED",
        "a key that was declared stolen can still be read outside",
        "where the signer publishes it no more, publish its newest documents at once, and empty caches",
    ),
    Row(
        "KEY_NOT_PUBLISHED",
        "a key is outside that the signer does not publish",
        "publish the signer's newest documents",
    ),
    Row(
        "KEY_IS_ANOTHER",
        "a key outside has the id of a signer's key, and is another",
        "find out who answers at that address",
    ),
    Row("KEY_MISSING", "a key of the signer is not outside", "publish the signer's newest documents"),
    Row(
        "NO_TOKEN",
        "the console's page has not the token of its URL",
        "open the URL that `podsvid console` printed last, with all that follows the `#`; a second tab needs it "
        "once more",
    ),
    Row(
        "WRONG_HOST",
        "the console was reached by another name or port than its URL's",
        "open the URL as it is printed; with `ssh -L` use the same port on both sides",
    ),
    Row(
        "TOO_MANY",
        "the console explains four pods already",
        "ask again in a few seconds; where it stays so, the API server does not answer: try `podsvid explain`",
    ),
    Row(
        "BAD_REQUEST",
        "the console was sent what no browser sends, or more than 16 KiB of headers",
        "open its URL in a browser, without a proxy that adds headers",
    ),
    Row(
        "QUICKSTART_FAILED",
        "the quickstart has no directory to run in, or what its volumes hold or its pods say is not what it should be",
        "choose another, short `--dir` where the text names one, on Linux; else the end of the agent's log is in the "
        "text: please report it",
    ),
    Row("AGENT_DIED", "the quickstart's agent ended", "the end of its log is in the text"),
    Row(
        "STAND_IN_ERROR",
        "the quickstart's stand-in for kubelet could not mount, unmount or register",
        "may this user mount (root, or user namespaces)? Does another quickstart run in that `--dir`?",
    ),
    Row("DRIVER_NOT_REGISTERED", "the quickstart's agent is not registered yet", "is it starting still? Its log says"),
    Row(
        "DRIVER_REFUSED",
        "what the quickstart's agent says of itself at its registration cannot be used, or it did not answer",
        "kubelet would refuse it as well: the agent's log says why it does not answer; else please report it",
    ),
    Row("PUBLISH_FAILED", "a volume of the quickstart was refused", "go on with the reason in the text"),
    Row("UNPUBLISH_FAILED", "a volume of the quickstart could not be taken down", "go on with the reason in the text"),
    Row("STATS_FAILED", "the quickstart's agent does not say how a volume is", "go on with the reason in the text"),
    Row("VOLUME_LEFT_BEHIND", "a volume of the quickstart was said to be gone, and is not", BUG),
)
