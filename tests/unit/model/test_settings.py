import msgspec
import pytest

from aoe_core import settings
from aoe_core.errors import Invalid
from aoe_core.model import Mac, NodeName, SanName

GOOD = """
node = "storage1"
[[san]]
name = "main"
interface = "eth1"
shelves = [[10, 11]]
[[pool]]
name = "thin"
volume_group = "data"
thin_pool = "tp"
[[known_node]]
name = "compute1"
macs = { main = ["52-54-00-00-01-15"] }
[[known_node]]
name = "compute2"
"""


def test_a_good_file_is_read() -> None:
    read = settings.parse(GOOD)
    assert read.san_named(SanName("main")) is not None
    assert read.known_macs(NodeName("compute1")) == {"main": (Mac("52:54:00:00:01:15"),)}
    assert read.known_macs(NodeName("compute2")) == {}
    assert read.known_macs(NodeName("compute3")) is None
    assert msgspec.structs.replace(read, known_node=None).known_macs(NodeName("compute3")) == {}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "node"),
        ("node = 5", "node"),
        ('node = ""', "node"),
        ('node = "a"\nfoo = 1', "'foo'"),
        ('node = "a"\n[exports]\nbufers = 4', "'bufers'"),
        ('node = "a"\n[exports]\nbuffers = "4"', "buffers"),
        ('node = "a"\n[exports]\nexporter = "vblade"', "exporter"),
        ('node = "a"\n[initiator]\ndeadsecs = 0', "deadsecs"),
        ('node = "a"\n[[san]]\nname = "m"\ninterface = "eth1"\nshelves = [[4000, 4100]]', "4095"),
        ('node = "a"\n[[san]]\nname = "m"\ninterface = "eth1"\nshelves = [[5, 4]]', "[5, 4]"),
        ('node = "a"\n[[san]]\nname = "m"\ninterface = "eth1"\nshelves = [[0, 65535]]', "65534"),
        ('node = "a"\n[[san]]\nname = "m"\ninterface = "eth1"\nshelves = [[1, 2], [2, 3]]', "shelf 2"),
        ('node = "a"\n[[san]]\nname = "m"\ninterface = "a b"', "interface"),
        (GOOD + '\n[[san]]\nname = "main"\ninterface = "eth2"', "main"),
        (GOOD + '\n[[san]]\nname = "other"\ninterface = "eth1"', "eth1"),
        (GOOD + '\n[[pool]]\nname = "thin"\nvolume_group = "x"', "thin"),
        (GOOD + '\n[[pool]]\nname = "again"\nvolume_group = "data"\nthin_pool = "tp"', "data/tp"),
        (GOOD + '\n[[pool]]\nname = "p"\nvolume_group = "-rf"', "volume_group"),
        (GOOD + '\n[[pool]]\nname = "p"\nvolume_group = "x"\noverprovision = 0.5', "overprovision"),
        (GOOD + '\n[[known_node]]\nname = "c"\nmacs = { main = ["zz"] }', "zz"),
        (GOOD + "\n[exports]\nrest_s = 600", "rest_s"),
        ("node = ", "TOML"),
    ],
)
def test_a_bad_file_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(Invalid) as refusal:
        settings.parse(text, "config.toml")
    assert named in str(refusal.value)
    assert "config.toml" in str(refusal.value)
