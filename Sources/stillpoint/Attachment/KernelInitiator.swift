import Foundation

// The kernel's iSCSI initiator, driven with open-iscsi's iscsiadm. An interface record of the attachment's own carries
// its initiator name, so that the host's own name and sessions stay as they are.
extension LocalAttachment {
    /// Where open-iscsi keeps its node records: Debian's place and the others'.
    static let nodeRecordDirectories = ["/etc/iscsi/nodes", "/var/lib/iscsi/nodes"]
    static let loginTimeoutSeconds = 60.0

    /// Why it cannot be used; nil when it can.
    func kernelInitiatorProblem() async -> String? {
        guard host.hasCommand("iscsiadm") else { return "open-iscsi (iscsiadm) is not installed" }
        guard await host.hasKernelInitiator() else { return "the kernel has no module iscsi_tcp" }
        return nil
    }

    func attachThroughKernel(_ record: inout AttachmentRecord) async throws {
        guard !record.naa.isEmpty else {
            throw CommandFailure("The node does not say which NAA identifier \(record.name) has")
        }
        record.begin(.interface)
        try directory.write(record)
        let interface = record.interfaceName
        try await iscsiadm(["-m", "iface", "-I", interface, "-o", "new"])
        try await iscsiadm([
            "-m", "iface", "-I", interface, "-o", "update", "-n", "iface.initiatorname", "-v", record.initiator,
        ])
        record.begin(.login)
        try directory.write(record)
        let session = ["-m", "node", "-T", record.iqn, "-p", record.portal, "-I", interface]
        try await iscsiadm(session + ["-o", "new"])
        try await iscsiadm(session + ["-o", "update", "-n", "node.startup", "-v", "manual"])
        if let chapUser = record.chapUser {
            for (name, value) in [
                ("node.session.auth.authmethod", "CHAP"), ("node.session.auth.username", chapUser),
            ] {
                try await iscsiadm(session + ["-o", "update", "-n", name, "-v", value])
            }
            try storeSecret(record)
        }
        try await iscsiadm(session + ["--login"], timeoutSeconds: Self.loginTimeoutSeconds)
        var waited = 0.0
        while true {
            if let disk = host.scsiDisk(naa: record.naa) {
                record.device = disk
                break
            }
            guard waited < Self.startTimeoutSeconds else {
                throw CommandFailure(
                    "The kernel logged in to \(record.iqn), but no disk with NAA \(record.naa) came up",
                    hint: "See dmesg")
            }
            await host.sleep(seconds: Self.pollSeconds)
            waited += Self.pollSeconds
        }
        if record.readOnly, let device = record.device {
            let result = try await host.run(["blockdev", "--setro", device])
            guard result.status == 0 else {
                throw CommandFailure("\(device) cannot be made read-only: \(result.complaint)")
            }
        }
    }

    /// iscsiadm takes a secret only on its command line, where everybody sees it; its record file, mode 0600, does as
    /// well.
    private func storeSecret(_ record: AttachmentRecord) throws {
        let secret = (try? String(contentsOfFile: record.secretPath, encoding: .utf8)) ?? ""
        unlink(record.secretPath)
        for root in Self.nodeRecordDirectories {
            let target = "\(root)/\(record.iqn)"
            for portal in (try? FileManager.default.contentsOfDirectory(atPath: target)) ?? [] {
                let path = "\(target)/\(portal)/\(record.interfaceName)"
                guard var text = try? String(contentsOfFile: path, encoding: .utf8) else { continue }
                let line = "node.session.auth.password = \(secret)\n"
                if let end = text.range(of: "# END RECORD") {
                    text.insert(contentsOf: line, at: end.lowerBound)
                } else {
                    text += line
                }
                do {
                    chmod(path, 0o600)
                    try text.write(toFile: path, atomically: false, encoding: .utf8)
                    return
                } catch {
                    throw CommandFailure("The record \(path) of open-iscsi cannot be written")
                }
            }
        }
        throw CommandFailure(
            "open-iscsi's record of \(record.iqn) was not found in \(Show.list(Self.nodeRecordDirectories))",
            hint: "Try --via user-space")
    }

    private func iscsiadm(_ arguments: [String], timeoutSeconds: Double = 30) async throws {
        let result = try await host.run(["iscsiadm"] + arguments, timeoutSeconds: timeoutSeconds)
        guard result.status == 0 else {
            throw CommandFailure("iscsiadm \(arguments.prefix(2).joined(separator: " ")) failed: \(result.complaint)")
        }
    }

    /// Statuses of iscsiadm(8) that mean there is nothing to undo.
    private static let nothingThere: Set<Int32> = [21]

    func logOut(_ record: AttachmentRecord) async throws {
        let session = ["iscsiadm", "-m", "node", "-T", record.iqn, "-p", record.portal, "-I", record.interfaceName]
        let result = try await host.run(session + ["--logout"], timeoutSeconds: Self.loginTimeoutSeconds)
        if result.status != 0, !Self.nothingThere.contains(result.status), host.scsiDisk(naa: record.naa) != nil {
            throw CommandFailure("The kernel cannot log out of \(record.iqn): \(result.complaint)")
        }
        _ = try? await host.run(session + ["-o", "delete"])
    }

    func removeInterface(_ record: AttachmentRecord) async {
        _ = try? await host.run(["iscsiadm", "-m", "iface", "-I", record.interfaceName, "-o", "delete"])
    }
}
