import API
import Foundation

/// One disk of a guest.
struct GuestDisk {
    enum Source {
        /// Through QEMU's own initiator: `IQN/LUN` at `HOST:PORT`.
        case iscsi(portal: String, iqn: String, lun: Int, chapUser: String?, secretUsage: String?)
        case block(String)
        case file(String, format: String)
    }
    var target: String
    var serial: String
    var source: Source
    var isReadOnly = false

    var xml: String {
        let name = serial.isEmpty ? "" : "<serial>\(serial)</serial>"
        let tail = "<target dev='\(target)' bus='virtio'/>\(isReadOnly ? "<readonly/>" : "")\(name)</disk>"
        switch source {
        case .iscsi(let portal, let iqn, let lun, let user, let usage):
            let parts = portal.split(separator: ":")
            let auth = user.map { "<auth username='\($0)'><secret type='iscsi' usage='\(usage ?? "")'/></auth>" } ?? ""
            return """
                <disk type='network' device='disk'><driver name='qemu' type='raw' cache='none' discard='unmap'/>\
                <source protocol='iscsi' name='\(iqn)/\(lun)'>\
                <host name='\(parts[0])' port='\(parts[1])'/>\(auth)</source>\
                \(tail)
                """
        case .block(let path):
            return """
                <disk type='block' device='disk'><driver name='qemu' type='raw' cache='none'/>\
                <source dev='\(path)'/>\(tail)
                """
        case .file(let path, let format):
            return """
                <disk type='file' device='disk'><driver name='qemu' type='\(format)'/><source file='\(path)'/>\(tail)
                """
        }
    }
}

/// A guest that boots in seconds: kernel and initramfs of `scripts/build-guest.sh`, data on disks.
/// A disk with a file system is mounted in it on `/mnt/LABEL` (or its serial, where there is no label).
final class Guest {
    let host: KVMHost
    let name: String
    let uuid: String
    var disks: [GuestDisk]
    /// Of `<os>`: UEFI firmware and its variables. It enters only the compressed kernel.
    var firmware = ""
    /// Of `<devices>`.
    var moreDevices = ""
    var memoryMiB = 208
    /// A TCP port of this machine that leads to port 11169 of the guest; there is no other network.
    var forwardedPort: Int?

    init(host: KVMHost, name: String, disks: [GuestDisk] = []) {
        self.host = host
        self.name = name
        self.disks = disks
        uuid = UUID().uuidString.lowercased()
    }

    /// QEMU's initiator introduces itself with the guest's UUID.
    var initiator: String { "iqn.2008-11.org.linux-kvm:\(uuid)" }
    var consolePath: String { "\(host.folder.path)/\(name).console" }

    private var kernel: String { firmware.isEmpty ? "vmlinux" : "vmlinuz" }

    var xml: String {
        """
        <domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
          <name>\(name)</name><uuid>\(uuid)</uuid>
          <memory unit='MiB'>\(memoryMiB)</memory><vcpu>1</vcpu>
          <os>
            <type arch='x86_64' machine='q35'>hvm</type>
            \(firmware)<kernel>\(host.image)/\(kernel)</kernel><initrd>\(host.image)/initrd</initrd>
            <cmdline>console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off</cmdline>
          </os>
          <features><acpi/></features>
          <on_reboot>destroy</on_reboot>
          <devices>
            <emulator>/usr/bin/qemu-system-x86_64</emulator>
            \(disks.map(\.xml).joined(separator: "\n    "))
            <controller type='pci' model='pcie-root'/>
            \(String(repeating: "<controller type='pci' model='pcie-root-port'/>", count: 10))
            <serial type='file'><source path='\(consolePath)'/></serial>
            <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
            <memballoon model='none'/>\(moreDevices)
          </devices>
          \(network)
        </domain>
        """
    }

    /// QEMU's own network: libvirt's way to it forwards no ports.
    private var network: String {
        guard let forwardedPort else { return "" }
        let forward = "user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:\(forwardedPort)-:11169"
        let values = ["-netdev", forward, "-device", "virtio-net-pci,netdev=n0,bus=pcie.0,addr=0x10"]
        return "<qemu:commandline>\(values.map { "<qemu:arg value='\($0)'/>" }.joined())</qemu:commandline>"
    }

    func define() throws {
        let file = "\(host.folder.path)/\(name).xml"
        try xml.write(toFile: file, atomically: true, encoding: .utf8)
        try host.virsh("define", file)
    }

    func start() throws { try host.virsh("start", name) }

    /// Waits until the guest agent answers.
    func waitForAgent(seconds: Double = 300) throws {
        let answered = try Shell.wait(upToSeconds: seconds) {
            try host.virshResult("qemu-agent-command", name, #"{"execute":"guest-ping"}"#).status == 0
        }
        guard answered else {
            let console = (try? String(contentsOfFile: consolePath, encoding: .utf8)) ?? ""
            throw CommandFailed(description: "\(name) does not answer; its console:\n\(console.suffix(1500))")
        }
    }

    func boot() throws {
        try define()
        try start()
        try waitForAgent()
    }

    /// Runs a shell command in the guest; its output. A status other than 0 is an error.
    @discardableResult
    func shell(_ command: String, seconds: Double = 180) throws -> String {
        let pid: Int = try agent(
            "guest-exec", ["path": "/bin/sh", "arg": ["-c", command], "capture-output": true], "pid")
        var result: [String: Any] = [:]
        let ended = try Shell.wait(upToSeconds: seconds) {
            result = try agent("guest-exec-status", ["pid": pid])
            return result["exited"] as? Bool == true
        }
        func text(_ key: String) -> String {
            (result[key] as? String).flatMap { Data(base64Encoded: $0) }.map { String(decoding: $0, as: UTF8.self) }
                ?? ""
        }
        guard ended, result["exitcode"] as? Int == 0 else {
            throw CommandFailed(
                description: "in \(name): \(command): \(result["exitcode"] ?? "no end") \(text("out-data")) "
                    + text("err-data"))
        }
        return text("out-data")
    }

    /// Starts a program that goes on in the guest; `guest-exec` keeps no pipe to it.
    func background(_ command: String) throws {
        try shell("setsid sh -c '\(command)' < /dev/null > /run/background.log 2>&1 &")
    }

    func agent(_ command: String, _ arguments: [String: Any] = [:]) throws -> [String: Any] {
        let request = try JSONSerialization.data(withJSONObject: ["execute": command, "arguments": arguments])
        let answer = try host.virsh("qemu-agent-command", name, String(decoding: request, as: UTF8.self))
        let object = try JSONSerialization.jsonObject(with: Data(answer.utf8)) as? [String: Any]
        return object?["return"] as? [String: Any] ?? [:]
    }

    private func agent<T>(_ command: String, _ arguments: [String: Any], _ key: String) throws -> T {
        guard let value = try agent(command, arguments)[key] as? T else {
            throw CommandFailed(description: "\(command) in \(name) gave no \(key)")
        }
        return value
    }

    var state: String { (try? host.virsh("domstate", name))?.trimmingCharacters(in: .whitespacesAndNewlines) ?? "" }

    func destroy() { _ = try? host.virshResult("destroy", name) }

    // MARK: The writer

    /// Writes 1, 2, 3, … durably to every one of `files` in turn: see scripts/guest/writer.c.
    func startWriter(_ files: [String], pauseMicroseconds: Int = 0) throws {
        try background("exec writer -p \(pauseMicroseconds) /run/writer \(files.joined(separator: " "))")
        guard try Shell.wait({ try written() > 0 }) else {
            throw CommandFailed(
                description: "the writer in \(name) did not begin: \(try shell("cat /run/background.log"))")
        }
    }

    /// The last number that is durable in all files.
    func written() throws -> Int {
        let text = try shell("cat /run/writer 2>/dev/null || true")
        return text.split(whereSeparator: \.isWhitespace).first.flatMap { Int($0) } ?? 0
    }

    /// The longest that one round of the writer took, in seconds.
    func longestRound() throws -> Double {
        let words = try shell("cat /run/writer").split(whereSeparator: \.isWhitespace)
        return words.count > 1 ? Double(words[1]) ?? 0 : 0
    }

    func stopWriter() throws { try shell("killall writer; true") }
}

extension TestNode {
    /// A volume with an ext4 file system of that label, let in for `initiator` with CHAP; as a disk for a guest.
    ///
    /// - Parameter content: a folder whose files the file system begins with.
    func guestDisk(
        volume: String, sizeText: String = "64MiB", target: String, initiator: String, host: KVMHost,
        label: String? = nil, content: String? = nil
    ) throws -> GuestDisk {
        try must("volume", "create", volume, "--size", sizeText)
        try Shell.check(
            ["mkfs.ext4", "-q", "-L", label ?? volume, "-E", "nodiscard"] + (content.map { ["-d", $0] } ?? [])
                + [try localImage(sizeText: sizeText)])
        try fill(volume: volume, from: try localImage(sizeText: sizeText, create: false))
        let info = try json(VolumeInfo.self, "volume", "show", volume)
        guard let export = info.exports.first else { throw CommandFailed(description: "\(volume) has no export") }
        let secret = "secret-of-\(volume)-0123"
        let file = folder.path + "/chap-\(volume)"
        try (secret + "\n").write(toFile: file, atomically: true, encoding: .utf8)
        try must(
            "target", "allow", export.iqn, "--initiator", initiator, "--chap-user", "guest", "--chap-secret-file", file)
        let usage = "\(volume)-\(UInt32.random(in: 0...UInt32.max))"
        try host.defineSecret(usage: usage, value: secret)
        return GuestDisk(
            target: target, serial: volume,
            source: .iscsi(portal: iscsi, iqn: export.iqn, lun: export.lun, chapUser: "guest", secretUsage: usage))
    }

    private func localImage(sizeText: String, create: Bool = true) throws -> String {
        let path = folder.path + "/fresh.img"
        if create { try Shell.check(["truncate", "-s", sizeText.replacingOccurrences(of: "iB", with: ""), path]) }
        return path
    }

    /// Copies an image into a volume over iSCSI, without attaching it.
    func fill(volume: String, from image: String) throws {
        let info = try json(VolumeInfo.self, "volume", "show", volume)
        try must("target", "allow", info.exports[0].iqn, "--initiator", "iqn.2026-11.test:fill")
        try Shell.check([
            "qemu-img", "convert", "-n", "-f", "raw", image, "--target-image-opts",
            "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=\(iscsi),file.target=\(info.exports[0].iqn),"
                + "file.lun=\(info.exports[0].lun),file.initiator-name=iqn.2026-11.test:fill",
        ])
        try must("target", "deny", info.exports[0].iqn, "--initiator", "iqn.2026-11.test:fill")
        try FileManager.default.removeItem(atPath: image)
    }
}
