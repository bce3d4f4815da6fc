import Foundation
import PluginKit
import Testing

@testable import stillpoint_agent

@Suite("Import of Snap Creator's configuration")
struct SnapCreatorTests {
    static let sample = """
        # A profile's configuration
        SNAME=kvm_nightly
        VOLUMES=filer1:vm_images,vm_data;filer2:vm_logs
        NTAP_SNAPSHOT_RETENTIONS=daily:7,weekly:4
        NTAP_SNAPSHOT_RETENTION_AGE=14
        NTAP_USERS=filer1:root/53616c7465645f5f
        SC_AGENT=kvmhost:9090
        SC_AGENT_TIMEOUT=900
        APP_NAME=kvm
        KVM_VM_MAPPING=web1:filer1:/vol/vm_images;db1:filer1:/vol/vm_data
        KVM_RESTORE_VM_LIST=web1;db1
        KVM_VM_CONFIG_DIR="/etc/libvirt/qemu"
        KVM_CMD_RETRY_COUNT=5
        PRE_APP_QUIESCE_CMD01=/usr/local/bin/announce "going quiet"
        POST_APP_UNQUIESCE_CMD01=/usr/local/bin/announce back
        POST_NTAP_CMD01=/bin/sh -c 'echo %SNAP_TIME > /tmp/last'
        PRE_EXIT_CMD01=/usr/local/bin/alert
        NTAP_SNAPSHOT_NODELETE=
        """

    static func imported(_ text: String) throws -> SnapCreatorImport {
        try SnapCreatorImport(try SnapCreatorFile(Data(text.utf8)))
    }

    @Test("a configuration becomes the agent's, byte for byte as written down here")
    func golden() throws {
        let result = try Self.imported(Self.sample)
        #expect(
            result.yaml == """
                # Made from a Snap Creator configuration by: stillpoint-agent import-snapcreator

                pluginConfiguration:
                  libvirt:
                    # What Snap Creator did: crash-consistent. With a guest agent in the guests, `agent` is better:
                    # it freezes their file systems, and runs VSS in Windows.
                    mode: pause
                    retryCount: 5
                    configDirectory: "/etc/libvirt/qemu"
                  hook:
                    hooks:
                      - name: snapcreator-pre-app-quiesce01
                        volumes: ["vm_images", "vm_data", "vm_logs"]
                        quiesce: ["/usr/local/bin/announce", "going quiet"]
                        unquiesce: ["/usr/local/bin/announce", "back"]
                        order: 0

                """)
        var configuration = AgentConfiguration()
        try configuration.apply(yaml: result.yaml)
        #expect(configuration.pluginConfiguration["libvirt"]?["configDirectory"]?.stringValue == "/etc/libvirt/qemu")
        #expect(configuration.pluginConfiguration["hook"] != nil)
    }

    @Test("every setting is accounted for once, and secrets are not shown")
    func accounted() throws {
        let result = try Self.imported(Self.sample)
        let lines = result.carried + result.left
        for name in [
            "SNAME", "VOLUMES", "NTAP_SNAPSHOT_RETENTIONS", "NTAP_SNAPSHOT_RETENTION_AGE", "NTAP_USERS", "SC_AGENT",
            "SC_AGENT_TIMEOUT", "APP_NAME", "KVM_VM_MAPPING", "KVM_RESTORE_VM_LIST", "KVM_VM_CONFIG_DIR",
            "KVM_CMD_RETRY_COUNT", "PRE_APP_QUIESCE_CMD01", "POST_APP_UNQUIESCE_CMD01", "POST_NTAP_CMD01",
            "PRE_EXIT_CMD01",
        ] {
            #expect(lines.count { $0.hasPrefix(name + ":") } == 1, "\(name)")
        }
        #expect(result.guests == ["web1", "db1"])
        #expect(result.restoredGuests == ["web1", "db1"])
        #expect(!result.report.contains("53616c"))
        #expect(result.report.contains("stillpoint guest restore web1 db1 --dry-run"))
        #expect(result.report.contains("7 daily, 4 weekly"))
    }

    @Test(
        "what is no configuration of Snap Creator for KVM is refused, with the line",
        arguments: [
            ("", "no APP_NAME"), ("APP_NAME=oracle", "only kvm"), ("APP_NAME=kvm\nnonsense", "line 2"),
            ("APP_NAME=kvm\nAPP_NAME=kvm", "already"), ("APP_NAME=kvm\nKVM_CMD_RETRY_COUNT=many", "line 2"),
            ("APP_NAME=kvm\nKVM_CMD_RETRY_COUNT=0", "1 to 100"), ("APP_NAME=kvm\nKVM_VM_CONFIG_DIR=qemu", "whole path"),
            ("APP_NAME=kvm\nNTAP_SNAPSHOT_RETENTIONS=daily", "POLICY:COUNT"),
            ("APP_NAME=kvm\nNTAP_SNAPSHOT_RETENTION_AGE=-1", "days"), ("APP_NAME=kvm\n1X=2", "no name"),
            ("APP_NAME=kvm\u{0}", "not text"),
        ])
    func refused(_ text: String, _ reason: String) throws {
        let error = #expect(throws: ConfigurationError.self) { _ = try Self.imported(text) }
        #expect(error?.description.contains(reason) == true, "\(error?.description ?? "")")
    }

    @Test("a file with carriage returns reads like one without")
    func carriageReturns() throws {
        #expect(
            try Self.imported(Self.sample.replacing("\n", with: "\r\n")) == Self.imported(Self.sample))
    }
}
