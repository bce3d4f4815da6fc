import API
import ISCSI
import SCSI

extension TargetRegistry {
    /// Volumes with the targets that export them, so that agents find those also that are reached past the kernel.
    func located(_ volumes: [VolumeReference]) -> [VolumeReference] {
        var exports: [String: [ExportReference]] = [:]
        for target in targets() {
            for lun in target.luns {
                exports[lun.identity.naa.lowercased(), default: []]
                    .append(ExportReference(target: target.iqn, lun: lun.lun))
            }
        }
        return volumes.map { volume in
            var volume = volume
            volume.exports = exports[volume.naa.lowercased()] ?? []
            return volume
        }
    }
}
