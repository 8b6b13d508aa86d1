-- Forwards every received image to the DICOM node, which sends a structured report back.
function OnStoredInstance(instance, tags, metadata, origin)
  if tags['Modality'] ~= 'SR' then
    SendToModality(instance, 'node')
  end
end
