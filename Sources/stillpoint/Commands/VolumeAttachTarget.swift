import API
import ArgumentParser
import Foundation

extension VolumeCommands {
    /// For the agent, which has no access to the node's API: everything that is to be known is given.
    struct AttachTarget: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "attach-target", abstract: "Make a local block device of a LUN whose address is known.",
            shouldDisplay: false)

        @Argument(help: "What the attachment is called.") var name: String
        @Option(help: ArgumentHelp("HOST:PORT", valueName: "portal")) var portal: String
        @Option(help: "The target.") var iqn: String
        @Option(help: "The LUN within it.") var lun: Int
        @Option(help: "The name to log in with; it must be let in without CHAP.") var initiator: String
        @Option(help: "auto, kernel or user-space.") var via: LocalAttachment.Way = .auto

        func run() async throws {
            let node = KnownTarget(
                name: name, export: ExportInfo(iqn: iqn, lun: lun, portals: [portal]), initiator: initiator)
            let attachment = LocalAttachment(
                host: LinuxHost(), node: node,
                nodeAddress: NodeAddress(api: "http://127.0.0.1:1", tokenFile: nil, authorityFile: nil),
                directory: .standard(), warn: { Terminal.error("stillpoint: \($0)") })
            let record = try await attachment.attach(name, readOnly: false, initiator: initiator, way: via)
            print(record.device ?? "")
        }
    }
}

/// Stands for the node where one LUN is all there is to know, and access is given already.
struct KnownTarget: AttachmentNode {
    var name: String
    var export: ExportInfo
    var initiator: String

    private func unknown() -> APIFailure {
        APIFailure(status: 404, code: "unknown", message: "only the target \(export.iqn) is known here")
    }

    func volume(_ name: String) async throws -> VolumeInfo {
        guard name == self.name else { throw unknown() }
        return VolumeInfo(
            id: "", name: name, sizeBytes: 0, mappedBytes: 0, naa: "", createdAt: .now, exports: [export], cloneOf: nil,
            initiators: [], snapshotCount: 0)
    }

    func snapshot(_ idOrName: String) async throws -> SnapshotInfo { throw unknown() }

    func target(_ iqn: String) async throws -> TargetInfo {
        TargetInfo(
            iqn: export.iqn, portals: export.portals, luns: [],
            access: [AccessInfo(initiator: initiator, chapUser: nil, isMutual: false)], sessions: [])
    }

    func allow(_ request: TargetAllowRequest, on iqn: String) async throws -> TargetInfo { throw unknown() }
    func deny(_ initiator: String, on iqn: String) async throws -> TargetInfo { throw unknown() }

    func exportSnapshot(_ idOrName: String, _ request: SnapshotExportRequest) async throws -> ExportInfo {
        throw unknown()
    }

    func removeSnapshotExport(_ idOrName: String, iqn: String) async throws {}
}
