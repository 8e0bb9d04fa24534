import re
from typing import Any

from aoe_csi.identity import Identity
from aoe_csi.proto import csi_pb2 as csi

from .plugin import Plugin


def test_the_plugin_says_who_it_is(plugin: Plugin) -> None:
    info = plugin.identity.GetPluginInfo(csi.GetPluginInfoRequest())
    assert info.name == "aoe-csi.dev"
    assert re.match(r"\d+\.\d+", info.vendor_version)


def test_a_storage_machine_says_which_one_it_is() -> None:
    context: Any = None

    def manifest(identity: Identity) -> dict[str, str]:
        return dict(identity.GetPluginInfo(csi.GetPluginInfoRequest(), context).manifest)

    assert manifest(Identity("storage1")) == {"node": "storage1"}
    assert manifest(Identity()) == {}


def test_the_plugin_says_what_it_offers(plugin: Plugin) -> None:
    capabilities = plugin.identity.GetPluginCapabilities(csi.GetPluginCapabilitiesRequest()).capabilities
    service, expansion = csi.PluginCapability.Service, csi.PluginCapability.VolumeExpansion
    assert {one.service.type for one in capabilities if one.HasField("service")} == {
        service.CONTROLLER_SERVICE,
        service.VOLUME_ACCESSIBILITY_CONSTRAINTS,
    }
    assert [one.volume_expansion.type for one in capabilities if one.HasField("volume_expansion")] == [expansion.ONLINE]


def test_it_is_ready_when_it_answers(plugin: Plugin) -> None:
    assert plugin.identity.Probe(csi.ProbeRequest()).ready.value
