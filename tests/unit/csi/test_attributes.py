"""volumeAttributes: what each accepts, and that hostile text is refused with a message and never anything else."""

from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi import layout
from csi.attributes import ATTRIBUTES, FOREIGN_ATTRIBUTES, parse_attributes
from csi.errors import InvalidRequest
from csi.model import JwtFile, VolumeOptions
from csi.profile import FS_GROUP_OF_CERT_MANAGER, PROFILES, default_profile_for
from svid.keys import KeyAlgorithm

CERT_MANAGER, SPIRE = PROFILES["cert-manager"], PROFILES["spire"]


def test_nothing_chosen_is_the_profiles_own() -> None:
    assert parse_attributes({}) == VolumeOptions(layout="spiffe")
    assert parse_attributes({}, SPIRE).layout == "socket"
    assert parse_attributes({}, CERT_MANAGER).layout == "cert-manager"
    assert parse_attributes({"layout": "spiffe"}, SPIRE).layout == "spiffe"


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"keyAlgorithm": "rsa-2048"}, "key_algorithm", KeyAlgorithm.RSA_2048),
        ({"layout": "istio"}, "layout", "istio"),
        ({"ttl": "90s"}, "ttl", timedelta(seconds=90)),
        ({"ttl": "12h"}, "ttl", timedelta(hours=12)),
        ({"dnsNames": "a.test, b.test,a.test"}, "dns_names", ("a.test", "b.test")),
        ({"jwt-audiences": "vault"}, "jwt_files", (JwtFile("vault.jwt", ("vault",)),)),
        (
            {"jwt-audiences": "sts=https://sts.test/?a=b, db"},
            "jwt_files",
            (JwtFile("sts", ("https://sts.test/?a=b",)), JwtFile("db.jwt", ("db",))),
        ),
        ({"jwt-audiences": "sts=vault,sts=db"}, "jwt_files", (JwtFile("sts", ("db", "vault")),)),
        # As they come apart: by file, whichever way that was named.
        (
            {"jwt-audiences": "db,sts=a,db.jwt=b=c, sts=db"},
            "jwt_files",
            (JwtFile("db.jwt", ("b=c", "db")), JwtFile("sts", ("a", "db"))),
        ),
        ({"keyMode": "0600"}, "key_mode", 0o600),
        ({"fileMode": "0444"}, "file_mode", 0o444),
        ({"fileOwner": "70"}, "owner", 70),
        ({"fsGroup": "0"}, "group", 0),
        ({"certificateFile": "a.pem", "keyFile": "b.pem"}, "file_names", (("certificate", "a.pem"), ("key", "b.pem"))),
        ({"keystores": "pkcs12", "keystorePassword": "changeit"}, "keystore_password", "changeit"),
    ],
)
def test_accepted(given: dict[str, str], field: str, value: object) -> None:
    assert getattr(parse_attributes(given), field) == value
    assert parse_attributes(given).given == tuple(sorted(given.items()))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"spiffeId": "spiffe://x/y"}, "unknown 'spiffeId'; accepted: layout,"),
        ({FS_GROUP_OF_CERT_MANAGER: "1"}, "unknown"),
        ({"layout": "windows"}, "one of spiffe, cert-manager"),
        ({"keyAlgorithm": "rsa-1024"}, "one of ec-p256"),
        ({"ttl": "0s"}, "duration"),
        ({"ttl": "367d"}, "duration from 1s to 366d"),
        ({"ttl": "999999999h"}, "duration"),
        ({"dnsNames": "*.test"}, "DNS names"),
        ({"dnsNames": "A.test"}, "DNS names"),
        ({"dnsNames": ",".join(f"a{n}.test" for n in range(17))}, "at most 16"),
        ({"jwt-audiences": ""}, "FILE=AUDIENCE"),
        ({"jwt-audiences": "https://vault.test"}, "FILE=AUDIENCE"),
        ({"jwt-audiences": "../x=vault"}, "FILE=AUDIENCE"),
        ({"jwt-audiences": ",".join(f"a{n}" for n in range(9))}, "at most 8"),
        ({"jwt-audiences": "a=x,a=x"}, "none twice in one"),
        ({"jwt-audiences": "db,db.jwt=db"}, "none twice in one"),
        ({"jwt-audiences": "a=x,a="}, "FILE=AUDIENCE"),
        ({"jwt-audiences": "a=x,tls.key=y,tls.key=z"}, "two files of one name: 'tls.key'"),
        ({"jwt-audiences": "tls.key=x"}, "two files of one name: 'tls.key'"),
        ({"jwt-audiences": "socket=x"}, "two files of one name: 'socket'"),
        ({"keyFile": "../tls.key"}, "a name of at most"),
        ({"keyFile": ".hidden"}, "a name of at most"),
        ({"keyFile": "tls.crt"}, "two files of one name"),
        ({"keyFile": "api.sock"}, "two files of one name"),
        ({"layout": "combined", "keyFile": "a"}, "layout combined has no such file"),
        ({"keyMode": "0777"}, "one of 0400"),
        ({"keyMode": "4755"}, "one of 0400"),
        ({"fileOwner": "-1"}, "a uid"),
        ({"fileOwner": "4294967295"}, "a uid"),
        ({"fsGroup": "٣"}, "a gid"),
        ({"keystorePassword": "changeit"}, "no keystores"),
        ({"keystores": "pkcs12", "keystorePassword": "short"}, "6 to 128"),
        ({"keystores": "jks"}, "pkcs12 or none"),
        ({"keystores": "pkcs12", "keyAlgorithm": "ed25519"}, "keystores cannot hold keyAlgorithm ed25519"),
        ({"layout": "keystore", "keyAlgorithm": "ml-dsa-44"}, "keystores cannot hold"),
    ],
)
def test_refused_with_what_is_accepted(given: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_attributes(given)
    assert words in str(caught.value)


def test_a_wished_lifetime_is_kept_as_it_was_written() -> None:
    assert (parse_attributes({"ttl": "90m"}).ttl, parse_attributes({"ttl": "90m"}).ttl_text) == (
        timedelta(minutes=90),
        "90m",
    )
    assert parse_attributes({}).ttl_text == ""


def _many(attribute: str, form: str, number: int) -> dict[str, str]:
    return {attribute: ",".join(map(form.format, range(number)))}


@pytest.mark.parametrize(
    ("fits", "too_much"),
    [
        ({"ttl": f"{366 * 24}h"}, {"ttl": f"{366 * 24 + 1}h"}),
        ({"ttl": "1s"}, {"ttl": "0s"}),
        (_many("dnsNames", "a{}.test", 16), _many("dnsNames", "a{}.test", 17)),
        (_many("jwt-audiences", "a{}", 8), _many("jwt-audiences", "a{}", 9)),
        (_many("jwt-audiences", "a=a{}", 12), _many("jwt-audiences", "a=a{}", 13)),
        ({"jwt-audiences": "a,b,c,d,e,f,g,h,h.jwt=i"}, {"jwt-audiences": "a,b,c,d,e,f,g,h,i"}),
        ({"jwt-audiences": "a=" + "ä" * 256}, {"jwt-audiences": "a=" + "ä" * 256 + "a"}),
        ({"jwt-audiences": "a=b c"}, {"jwt-audiences": "a=b\nc"}),
        ({"jwt-audiences": "a=b"}, {"jwt-audiences": "a=\N{NO-BREAK SPACE}"}),
        # What is around a part is kept with the volume, and in the journal it is longer than here.
        ({"jwt-audiences": "a=b" + " " * 8189}, {"jwt-audiences": "a=b" + " " * 8190}),
        ({"dnsNames": "a.test,\n b.test "}, {"dnsNames": "a.test,\x1fb.test"}),
        ({"jwt-audiences": "a,\r\n\tb"}, {"jwt-audiences": "a,\u2003b"}),
        ({"keyFile": "a" * 63}, {"keyFile": "a" * 64}),
        ({"keyFile": "a"}, {"keyFile": "a\n"}),
        ({"fileOwner": str(2**31 - 1)}, {"fileOwner": str(2**31)}),
        ({"fsGroup": "0000000001"}, {"fsGroup": "00000000001"}),
        ({"keystores": "pkcs12", "keystorePassword": "!" * 6}, {"keystores": "pkcs12", "keystorePassword": "!" * 5}),
        (
            {"keystores": "pkcs12", "keystorePassword": "~" * 128},
            {"keystores": "pkcs12", "keystorePassword": "~" * 129},
        ),
        ({"layout": "keystore", "keystorePassword": "sesame"}, {"layout": "keystore", "keystorePassword": "ses me"}),
        ({"layout": "keystore", "keyAlgorithm": "rsa-4096"}, {"layout": "keystore", "keyAlgorithm": "ml-dsa-44"}),
    ],
)
def test_accepted_to_the_bound_and_not_beyond(fits: dict[str, str], too_much: dict[str, str]) -> None:
    assert dict(parse_attributes(fits).given) == fits
    with pytest.raises(InvalidRequest):
        parse_attributes(too_much)


def test_the_longest_lists_fit() -> None:
    names = [letter * 63 for letter in "abcdefgh"]
    pairs = [(name, f"{number:x}" * 512) for number, name in enumerate([*names, *names[:4]])]
    files = parse_attributes({"jwt-audiences": ", ".join(f"{name}={audience}" for name, audience in pairs)}).jwt_files
    assert [file.name for file in files] == names
    assert [len(file.audiences) for file in files] == [2, 2, 2, 2, 1, 1, 1, 1]
    domain = ".".join(["a" * 63] * 3 + ["a" * 58])
    hosts = tuple(f"{number:x}.{domain}" for number in range(16))
    assert parse_attributes({"dnsNames": ", ".join(hosts)}).dns_names == hosts


def test_a_modes_set_bits_and_others_writes_are_never_accepted() -> None:
    for bits in range(0o10000):
        text = f"{bits:04o}"
        if bits & 0o7133:
            with pytest.raises(InvalidRequest):
                parse_attributes({"keyMode": text})


def test_hostile_text_is_quoted_escaped_and_cut_in_the_refusal() -> None:
    for hostile in ({"\x1b[31m" + "n" * 1000: "x"}, {"ttl": "\x1b[31m\n" + "v" * 1000}):
        with pytest.raises(InvalidRequest) as caught:
            parse_attributes(hostile)
        assert str(caught.value).isprintable()
        assert "\\x1b[31m" in str(caught.value)
        assert len(str(caught.value)) < 700


def test_a_password_is_in_no_repr() -> None:
    options = parse_attributes({"keystores": "pkcs12", "keystorePassword": "sesame-1"})
    assert "sesame-1" not in repr(options).replace(repr(options.given), "")


def test_the_drop_in_profiles() -> None:
    assert default_profile_for("csi.spiffe.io") == "spire"
    assert default_profile_for("spiffe.csi.cert-manager.io") == "cert-manager"
    assert default_profile_for("csi.podsvid.io") == "podsvid"
    found = parse_attributes({FS_GROUP_OF_CERT_MANAGER: "2000", "fsGroup": "1"}, CERT_MANAGER)
    assert found.group == 2000
    for wrong in ("0", "-1", "4294967296", "4294967295", "x", ""):
        with pytest.raises(InvalidRequest, match="gid from 1"):
            parse_attributes({FS_GROUP_OF_CERT_MANAGER: wrong}, CERT_MANAGER)


NAMES = st.sampled_from([each.name for each in (*ATTRIBUTES, *FOREIGN_ATTRIBUTES)]) | st.text(max_size=12)
VALUES = st.text(max_size=40) | st.sampled_from(["pkcs12", "grpc", "tls.key", "0600", "a=b,c=d", "1", "ec-p384", "\0"])


@given(st.dictionaries(NAMES, VALUES, max_size=6), st.sampled_from(list(PROFILES.values())))
def test_hostile_text_is_read_or_refused_and_what_is_read_makes_plain_file_names(
    given: dict[str, str], profile: object
) -> None:
    with suppress(InvalidRequest):
        options = parse_attributes(given, profile)  # type: ignore[arg-type]
        names = layout.file_names(options)
        assert len(set(names)) == len(names)
        assert all(name and "/" not in name and not name.startswith(".") for name in names)
        # The journal keeps `given` and reads it again.
        assert parse_attributes(dict(options.given), PROFILES[options.profile]) == options
