import API
import Foundation

/// The disks of this machine by what a hypervisor gives a guest's disk to be known by: its serial or its WWN.
///
/// Neither tells a volume by itself: definitions are copied, and a clone of a guest has disks with the same serials.
/// Together with the UUID of the guest, and read from its definition by its host, they do.
struct GuestDisks {
    struct NotFound: Error, Equatable {
        var reason: String
    }

    private struct Disk {
        var name: String
        var serial: String?
        var wwn: String?
    }

    /// UUID of this machine; nil where the firmware tells none.
    let machine: String?
    private let disks: [Disk]

    /// What virtio-blk shows of a serial: the guest's driver asks for no more.
    static let virtioSerialBytes = 20

    /// - Parameter sysfs: `/sys`, or a made-up one in tests.
    init(sysfs: String) {
        machine = Self.machine(sysfs: sysfs)
        let names = ((try? FileManager.default.contentsOfDirectory(atPath: sysfs + "/block")) ?? []).sorted()
        disks = names.compactMap { name in
            let base = sysfs + "/block/\(name)"
            // virtio-blk; NVMe; SCSI and ATA disks by their vital product data.
            let serial =
                Self.text(base + "/serial") ?? Self.text(base + "/device/serial") ?? Self.unitSerial(base + "/device")
            let wwid = (Self.text(base + "/device/wwid") ?? Self.text(base + "/wwid"))?.lowercased()
            let wwn = wwid.flatMap { $0.hasPrefix("naa.") ? String($0.dropFirst(4)) : nil }
            return serial == nil && wwn == nil ? nil : Disk(name: name, serial: serial, wwn: wwn)
        }
    }

    static func machine(sysfs: String) -> String? { text(sysfs + "/class/dmi/id/product_uuid")?.lowercased() }

    /// The name of the one disk that it is.
    func find(_ wanted: GuestDiskReference) -> Result<String, NotFound> {
        let known = [wanted.serial.map { "the serial \($0)" }, wanted.wwn.map { "the WWN \($0)" }]
            .compactMap { $0 }.joined(separator: " and ")
        let found = disks.filter { disk in
            if let wwn = wanted.wwn, disk.wwn == wwn { return true }
            guard let serial = wanted.serial, let own = disk.serial else { return false }
            return own == serial || (disk.name.hasPrefix("vd") && own == Self.cut(serial))
        }
        switch found.count {
        case 1: return .success(found[0].name)
        case 0: return .failure(NotFound(reason: "the disk \(wanted.target) with \(known) is not seen in the guest"))
        default:
            let names = found.map(\.name).joined(separator: ", ")
            return .failure(
                NotFound(reason: "\(names) have \(known) alike. Give each disk of the guest a serial of its own"))
        }
    }

    private static func cut(_ serial: String) -> String {
        String(decoding: serial.utf8.prefix(virtioSerialBytes), as: UTF8.self)
    }

    /// Page 80h of the vital product data: a header of four bytes, then the serial.
    private static func unitSerial(_ device: String) -> String? {
        guard let page = FileManager.default.contents(atPath: device + "/vpd_pg80"), page.count > 4 else { return nil }
        let text = String(decoding: page.dropFirst(4), as: UTF8.self)
            .trimmingCharacters(in: .whitespaces.union(.controlCharacters))
        return text.isEmpty ? nil : text
    }

    private static func text(_ path: String) -> String? {
        guard let data = FileManager.default.contents(atPath: path) else { return nil }
        let text = String(decoding: data, as: UTF8.self)
            .trimmingCharacters(in: .whitespacesAndNewlines.union(.controlCharacters))
        return text.isEmpty ? nil : text
    }
}
