import API
import Foundation
import NIOHTTP1
import Testing

@testable import Node

@Suite("Portal groups")
struct PortalTests {
    @Test("portals of the configuration listen in their groups, and a group's state is shown, set and refused")
    func groups() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let node = try await TestNode.start(directory) { configuration in
            configuration.iscsiPortals = [
                PortalSetting(address: ListenAddress(host: "127.0.0.1", port: 0), group: 2),
                PortalSetting(address: ListenAddress(host: "127.0.0.1", port: 0), group: 2),
            ]
            configuration.iscsiGroups = [2: .standby]
        }
        let groups = try await node.call(.GET, "/v1/portal-groups").decode([PortalGroupInfo].self)
        #expect(groups.map(\.group) == [1, 2] && groups.map(\.access) == [.optimized, .standby])
        #expect(groups[0].portals == [node.services.addresses.iscsi] && Set(groups[1].portals).count == 2)
        let changed = try await node.call(.POST, "/v1/portal-groups/2", PortalGroupRequest(access: .nonOptimized))
        #expect(changed.status == 200)
        #expect(try changed.decode(PortalGroupInfo.self).access == .nonOptimized)
        #expect(node.services.inventory.portalGroups().map(\.access) == [.optimized, .nonOptimized])
        let unknown = try await node.call(.POST, "/v1/portal-groups/7", PortalGroupRequest(access: .standby))
        #expect(unknown.status == 404 && unknown.failure?.code == "portalGroupNotFound")
        let wrong = try await node.call(.POST, "/v1/portal-groups/2", raw: Data(#"{"access":"fast"}"#.utf8))
        #expect(wrong.status == 400)
        try await node.end()
    }

    @Test("a state set at run time outlives a restart, until the configuration says something new")
    func restart() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        func states(
            _ configured: PortalAccess, set access: PortalAccess? = nil
        ) async throws -> [PortalAccess] {
            let node = try await TestNode.start(directory) { configuration in
                configuration.iscsiPortals = [
                    PortalSetting(address: ListenAddress(host: "127.0.0.1", port: 0), group: 2)
                ]
                configuration.iscsiGroups = [2: configured]
            }
            if let access {
                let changed = try await node.call(.POST, "/v1/portal-groups/2", PortalGroupRequest(access: access))
                #expect(changed.status == 200)
            }
            let groups = try await node.call(.GET, "/v1/portal-groups").decode([PortalGroupInfo].self)
            try await node.end()
            return groups.map(\.access)
        }
        #expect(try await states(.nonOptimized) == [.optimized, .nonOptimized])
        #expect(try await states(.nonOptimized, set: .standby) == [.optimized, .standby])
        #expect(try await states(.nonOptimized) == [.optimized, .standby])
        // The configuration is the newer word now, and stays it.
        #expect(try await states(.unavailable) == [.optimized, .unavailable])
        #expect(try await states(.nonOptimized, set: .standby) == [.optimized, .standby])
        // Back to what is configured: nothing is kept.
        #expect(try await states(.nonOptimized, set: .nonOptimized) == [.optimized, .nonOptimized])
        #expect(try await states(.optimized) == [.optimized, .optimized])
    }

    @Test("portals and groups are read from their text, and what is wrong with it is said")
    func configuration() throws {
        let flags = ["iscsi-portals": "192.0.2.7:3260=2, [2001:db8::7]:3260=3", "iscsi-groups": "3=standby"]
        let read = try NodeConfiguration.load(environment: [:], flags: flags)
        #expect(read.iscsiPortals.map(\.group) == [2, 3] && read.iscsiGroups == [3: .standby])
        for (flag, text) in [
            ("iscsi-portals", "192.0.2.7:3260"), ("iscsi-portals", "x=2"), ("iscsi-groups", "2=fast"),
            ("iscsi-groups", "9=standby"), ("iscsi-portals", "192.0.2.7:3260=2,192.0.2.7:3260=3"),
        ] {
            #expect(NodeConfiguration.check(environment: [:], flags: [flag: text]).count == 1, "\(text)")
        }
    }
}
