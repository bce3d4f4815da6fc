import API
import ArgumentParser

extension LocalAttachment.Way: ExpressibleByArgument {}

extension VolumeCommands {
    struct Attach: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a local block device of a volume or a snapshot, and print it.",
            discussion: """
                Through the kernel's iSCSI initiator where there is one, else in user space (qemu-storage-daemon, \
                nbdfuse and a loop device). A snapshot is attached read-only. Needs root.
                """)

        @Argument(help: "VOLUME, SNAPSHOT, or SNAPSHOT/VOLUME.", completion: Names.attachable) var name: String
        @Flag(help: "Attach it read-only.") var readOnly = false
        @Option(
            help: ArgumentHelp("Log in with this initiator name instead of one of its own.", valueName: "iqn"))
        var initiator: String?
        @Option(help: "auto, kernel or user-space.") var via: LocalAttachment.Way = .auto
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let attachment = LocalAttachment(
                host: LinuxHost(), node: node, nodeAddress: try connection.locate().absolute,
                directory: .standard(), warn: { Terminal.error("stillpoint: \($0)") })
            let record = try await attachment.attach(name, readOnly: readOnly, initiator: initiator, way: via)
            if connection.isJSON { return try Output.json(record) }
            print(record.device ?? "")
        }
    }

    struct Detach: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Take a local block device away again.",
            discussion: """
                What lies in the page cache is written first. Refused while the device is mounted or used otherwise. \
                Also takes away what a crash left half done.
                """)

        @Argument(help: "The volume or snapshot, or the device.", completion: Names.attached) var name: String
        @Flag(help: "Throw away what cannot be written any more, e.g. because the node is gone.") var force = false
        @OptionGroup var connection: ConnectionOptions

        func run() async throws {
            let directory = AttachmentDirectory.standard()
            let record = try LocalAttachment.find(name, in: directory)
            // The node that it was attached from, unless another address is given for it now.
            let address = connection.api == nil ? record.node : try connection.locate()
            let node = try address.connect()
            let attachment = LocalAttachment(
                host: LinuxHost(), node: node, nodeAddress: address, directory: directory,
                warn: { Terminal.error("stillpoint: \($0)") })
            do {
                let detached = try await attachment.detach(name, force: force)
                if connection.isJSON {
                    try Output.json(detached)
                } else {
                    print("\(detached.name) is detached" + (detached.device.map { " from \($0)" } ?? ""))
                }
            } catch {
                await node.close()
                throw error
            }
            await node.close()
        }
    }

    struct Attachments: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List what is attached on this machine.")

        @OptionGroup var connection: ConnectionOptions

        func run() async throws {
            let records = try AttachmentDirectory.standard().records()
            if connection.isJSON { return try Output.json(records) }
            let host = LinuxHost()
            Output.table(
                Table(
                    [.left("NAME"), .left("DEVICE"), .left("ACCESS"), .left("VIA"), .left("STATE"), .left("TARGET")],
                    rows: records.map { record in
                        let died = record.daemons.filter { host.startTicks(of: $0.pid) != $0.startTicks }
                        let state =
                            record.device == nil
                            ? "half attached"
                            : died.isEmpty ? "attached" : "broken: \(Show.list(died.map(\.command))) died"
                        return [
                            record.name, record.device ?? "", record.readOnly ? "read-only" : "read-write",
                            record.method == .kernel ? "kernel" : "user space", state, record.iqn,
                        ]
                    }), whenEmpty: "Nothing is attached on this machine")
        }
    }
}
