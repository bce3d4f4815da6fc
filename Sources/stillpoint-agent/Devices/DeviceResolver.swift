import API
import Foundation

/// Finds which block devices of this host are volumes of ours.
///
/// Three kinds of evidence: the NAA identifier that the kernel read from a SCSI disk (`/sys/block/*/device/wwid`), and
/// the notes that `stillpoint volume attach` leaves for loop devices, which count only as long as the loop device
/// still has the backing file they name, and, inside of a guest, what the guest's host says of its disks. A volume that
/// is reached over several paths gives a device for each. What is built on them (partitions, multipath, LVM, md) is for
/// the plug-ins to follow, as only they know what they look for.
struct DeviceResolver: Sendable {
    /// Roots, so that tests can give others.
    var sysfs = "/sys"
    var devices = "/dev"
    var attachments: String

    struct Finding: Sendable, Equatable {
        var devices: [DeviceInfo]
        var warnings: [String]
        var unseen: [UnseenInfo] = []
    }

    /// What one attachment file says.
    private struct Attachment: Decodable {
        var volume: String
        var naa: String
        var device: String
        var backing: String?
        var readOnly: Bool?
        var initiator: String?
    }

    func resolve(_ volumes: [VolumeReference]) -> Finding {
        var warnings: [String] = []
        let disks = scsiDisks()
        let attached = attachedDevices(&warnings)
        var found: [DeviceInfo] = []
        var unseen: [UnseenInfo] = []
        let inside = GuestDisks(sysfs: sysfs)
        for volume in volumes {
            let naa = volume.naa.lowercased()
            found += disks.filter { $0.naa == naa }.map {
                DeviceInfo(volume: volume.name, naa: naa, path: path(of: $0.name), initiator: initiator(of: $0.name))
            }
            found += attached.filter { $0.naa == naa }.map {
                DeviceInfo(volume: volume.name, naa: naa, path: path(of: $0.name), initiator: $0.initiator)
            }
            for disk in volume.guestDisks ?? [] where disk.guest == inside.machine {
                // Passed through as it is: found by its own identifier.
                if found.contains(where: { $0.naa == naa }) { continue }
                switch inside.find(disk) {
                case .success(let name):
                    found.append(
                        DeviceInfo(volume: volume.name, naa: naa, path: path(of: name), guest: disk.guest))
                case .failure(let failure):
                    unseen.append(
                        UnseenInfo(
                            plugin: "agent", layer: .application, reason: failure.reason, scope: .named,
                            volumes: [volume.name]))
                }
            }
        }
        return Finding(devices: found, warnings: warnings, unseen: unseen)
    }

    /// UUID of this machine, as its firmware tells it.
    var machine: String? { GuestDisks.machine(sysfs: sysfs) }

    /// All volumes that can be told to be ours without asking the node: for an administrator at this host.
    func candidates() -> [VolumeReference] {
        var warnings: [String] = []
        var references = attachmentNotes(&warnings).filter { $0.readOnly != true }
            .map { VolumeReference(name: $0.volume, naa: $0.naa.lowercased()) }
        for disk in scsiDisks() where disk.vendor.lowercased().hasPrefix("stillp") {
            if !references.contains(where: { $0.naa == disk.naa }) {
                references.append(VolumeReference(name: disk.naa, naa: disk.naa))
            }
        }
        return references
    }

    private func scsiDisks() -> [(name: String, naa: String, vendor: String)] {
        list(sysfs + "/block").compactMap { name in
            guard let wwid = text(sysfs + "/block/\(name)/device/wwid")?.lowercased(), wwid.hasPrefix("naa.") else {
                return nil
            }
            return (name, String(wwid.dropFirst(4)), text(sysfs + "/block/\(name)/device/vendor") ?? "")
        }
    }

    private func attachmentNotes(_ warnings: inout [String]) -> [Attachment] {
        guard let status = FileStatus(path: attachments) else { return [] }
        guard status.isTrusted else {
            warnings.append("\(attachments) can be written by others and was not looked at. Run: chmod go-w")
            return []
        }
        var notes: [Attachment] = []
        for name in list(attachments) where name.hasSuffix(".json") {
            let path = attachments + "/" + name
            guard let status = FileStatus(path: path), status.isTrusted, status.sizeBytes <= 65_536,
                let data = FileManager.default.contents(atPath: path),
                let note = try? JSONDecoder().decode(Attachment.self, from: data)
            else {
                warnings.append("The attachment file \(path) cannot be used")
                continue
            }
            notes.append(note)
        }
        return notes
    }

    private func attachedDevices(_ warnings: inout [String]) -> [(name: String, naa: String, initiator: String?)] {
        var found: [(name: String, naa: String, initiator: String?)] = []
        // A snapshot that is attached for reading is not what its volume's applications write to.
        for note in attachmentNotes(&warnings) where note.readOnly != true {
            let name = (note.device as NSString).lastPathComponent
            guard FileManager.default.fileExists(atPath: sysfs + "/block/\(name)") else {
                warnings.append("Volume \(note.volume) is noted as attached at \(note.device), which is gone")
                continue
            }
            if let backing = text(sysfs + "/block/\(name)/loop/backing_file") {
                guard let wanted = note.backing, backing == wanted || backing == wanted + " (deleted)" else {
                    warnings.append(
                        "Volume \(note.volume) is noted as attached at \(note.device), which now stands on \(backing)"
                    )
                    continue
                }
                found.append((name, note.naa.lowercased(), note.initiator))
            } else if let wwid = text(sysfs + "/block/\(name)/device/wwid")?.lowercased() {
                // Found by its own identifier already, if it is the volume at all.
                if wwid != "naa." + note.naa.lowercased() {
                    warnings.append("Volume \(note.volume) is noted as attached at \(note.device), which is \(wwid)")
                }
            } else {
                warnings.append("\(note.device), noted for volume \(note.volume), is not a device that can be checked")
            }
        }
        return found
    }

    /// The name that the kernel's initiator logged in with: the disk hangs below its session in sysfs.
    private func initiator(of disk: String) -> String? {
        guard let device = realpath(sysfs + "/block/\(disk)/device", nil) else { return nil }
        defer { free(device) }
        let session = String(cString: device).split(separator: "/").first {
            $0.hasPrefix("session") && $0.dropFirst(7).allSatisfy(\.isNumber)
        }
        return session.flatMap { text(sysfs + "/class/iscsi_session/\($0)/initiatorname") }
    }

    /// The kernel writes `!` for `/` in names.
    private func path(of name: String) -> String { devices + "/" + name.replacing("!", with: "/") }

    private func list(_ path: String) -> [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []).sorted()
    }

    private func text(_ path: String) -> String? {
        guard let data = FileManager.default.contents(atPath: path) else { return nil }
        return String(decoding: data, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
    }
}
